"""The page about a run: complete, self-contained, small, the same each time, whatever state the run is in."""

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest

from lm import config
from lm.errors import DamagedFileError, UsageError
from lm.report.run import write_run_report
from lm.resolve import resolve
from lm.storage import read_text, write_atomic
from lm.train.metrics import JsonlSink


def write_run(folder, *, num_steps=400, last=400, nan_from=math.inf, evals=True, mfu=None, samples=3, restart=None):
    folder.mkdir(exist_ok=True)
    changed = config.default()
    changed.optimizer.num_steps = num_steps
    changed.model.qk_norm = True
    changed.log.sample_prompts = ("<i>Once",)
    resolved = resolve(changed)
    run = {
        "name": "shakespeare <b>",
        "config": config.to_dict(resolved),
        "fingerprint": "0123456789abcdef" * 4,
        "git_commit": None,
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "python": "3.11.7",
        "devices": "1 x cpu",
        "num_parameters": 3_548_160,
        "command": "lm train --config experiments/tiny.py",
        "data": {"source": "stdlib", "tokenizer": "train", "train_tokens": 2_600_000},
    }
    (folder / "config.json").write_text(json.dumps(run))
    sink = JsonlSink(str(folder))
    for step in range(1, last + 1):
        loss = math.nan if step >= nan_from else 3 + 4 * math.exp(-step / 50)
        sink.write(
            {
                "step": step,
                "loss": loss,
                "bits_per_byte": loss / 2,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "tokens": step * 2048,
                "epoch": step / 100,
                "tokens_per_second": 100.0 if step == 1 else 20_000.0,
                "mfu": mfu,
                "seconds": (step if not restart or step <= restart else step - restart) * 0.5,
            }
        )
        if evals and step % 100 == 0:
            values = {"loss": loss, "perplexity": 31.25, "bits_per_byte": 1.5 + (step == last) / 8}
            sink.write({"kind": "eval", "step": step, "split": "validation", "tokens": 4096, "stride": 64, **values})
    if samples:
        (folder / "samples").mkdir(exist_ok=True)
    for number in range(1, samples + 1):
        (folder / "samples" / f"{number * 9}.txt").write_text(f"sample {number} <script>alert(1)</script>\x1b[0m")
    return str(folder)


def report(folder):
    return read_text(write_run_report(folder))


def headline(content):
    """{name: (value, remark)} of the figures at the top."""
    block = re.search(r'<dl class="numbers">(.*?)</dl>', content, re.DOTALL)[1]
    cells = re.findall(r"<dt>(.*?)</dt><dd>(.*?)(?:<small>(.*?)</small>)?</dd>", block)
    return {name: (value, remark) for name, value, remark in cells}


class Checker(HTMLParser):
    """Collects what a browser would fetch, and that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return report(write_run(tmp_path_factory.mktemp("runs") / "finished"))


def test_the_page_fetches_nothing_and_is_well_formed(finished):
    checker = Checker()
    checker.feed(finished)
    assert not checker.open
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert all(link.startswith("#") for link in checker.links)
    assert "@import" not in finished
    assert not re.search(r"url\((?!#)", finished)


def test_the_headline_is_the_last_validation_with_the_best_beside_it(finished):
    figures = headline(finished)
    assert figures["Validation bits per byte"] == ("1.6250", "at step 400; best 1.5000 at 100")
    assert figures["Validation loss"][0] == f"{3 + 4 * math.exp(-8):.4f}"
    assert figures["Perplexity"] == ("31.25", "stride 64")
    assert figures["Parameters"] == ("3.55M", "3,548,160")
    assert figures["Tokens seen"] == ("819k", "4.00 epochs of 2.60M")
    assert figures["Wall time"] == ("3:20", "400 steps")
    assert figures["Tokens per second"][0] == "20.0k"  # not dragged down by the step that compiled
    assert figures["MFU"] == ("unknown chip", "")


def test_everything_asked_for_is_there_in_its_order(finished):
    parts = ["<h1>shakespeare", 'class="numbers"', "Curves", "Bits per byte</figc", "Loss, nats", "Learning rate</figc"]
    parts += ["Gradient norm", "Tokens per second</figc", "Evaluations (4)", "Samples at step 27", "sample 3"]
    parts += [
        "Earlier samples (2)",
        "sample 2",
        "sample 1",
        "Config</h2>",
        "Whole config",
        "Environment",
        "flax 0.12.8",
    ]
    places = [finished.index(part) for part in parts]
    assert places == sorted(places)
    assert "not finished" not in finished


def test_the_config_table_shows_what_differs_from_default_and_folds_the_rest(finished):
    section = finished[finished.index("Config</h2>") : finished.index("Environment")]
    changed, whole = section.split("<details>")
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", changed)
    assert [html.unescape(name) for name, _, _ in rows] == ["model.qk_norm", "log.sample_prompts"]
    assert rows[0][1:] == ("True", "False")
    assert "model.num_layers" in whole


def test_what_comes_from_data_is_escaped(finished):
    assert "<script>" not in finished
    assert "shakespeare &lt;b&gt;" in finished
    assert "&lt;i&gt;Once" in finished
    assert "\x1b" not in finished


def test_the_same_run_gives_the_same_bytes(tmp_path):
    folder = write_run(tmp_path / "run", last=30)
    assert report(folder) == report(folder)


def test_plots_say_in_words_what_they_show(finished):
    labels = re.findall(r'<svg[^>]* role="img" aria-label="([^"]*)"', finished)
    assert len(labels) == finished.count("<svg") == 6
    assert "validation goes from 1.5 to 1.625" in labels[0]


def test_a_run_without_validation_says_so_and_quotes_training(tmp_path):
    content = report(write_run(tmp_path / "run", last=60, evals=False, samples=0))
    assert headline(content)["Training bits per byte"][1] == "no validation yet"
    assert "Validation bits per byte" not in content
    assert "Evaluations" not in content
    assert "Samples" not in content
    assert "This run is not finished: it stands at step 60 of 400." in content


def test_a_run_with_one_record_has_a_page(tmp_path):
    content = report(write_run(tmp_path / "run", last=1, evals=False))
    assert headline(content)["Wall time"] == ("0:00", "1 step")
    assert content.count("<svg") == 6


def test_a_diverged_run_is_announced_and_not_drawn_as_zero(tmp_path):
    content = report(write_run(tmp_path / "run", nan_from=151))
    assert "The loss was not finite in 250 of 400 logged steps, first at step 151." in content
    assert headline(content)["Validation loss"][0] == "not finite"
    assert re.search(r"training goes from [\d.]+ to 3\.\d+", content)


def test_a_run_that_never_had_a_finite_loss_has_a_page(tmp_path):
    content = report(write_run(tmp_path / "run", last=20, nan_from=1, evals=False))
    assert headline(content)["Training loss"][0] == "not finite"
    assert content.count("<svg") == 3


def test_a_known_mfu_is_a_percentage_with_its_convention(tmp_path):
    figures = headline(report(write_run(tmp_path / "run", last=20, mfu=0.4123)))
    assert figures["MFU"] == ("41.2%", "model FLOPs, causal attention at half")


def test_wall_time_adds_up_over_a_restart_that_counts_from_zero(tmp_path):
    content = report(write_run(tmp_path / "run", last=200, restart=120))
    assert headline(content)["Wall time"][0] == "1:40"


def test_many_long_samples_keep_the_page_small_and_say_what_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", last=400)
    for step in range(1000, 1100):
        (tmp_path / "run" / "samples" / f"{step}.txt").write_text("&" * 50_000)
    content = report(folder)
    assert len(content.encode()) < 400_000
    assert "Samples at step 1,099" in content
    assert re.search(r"Earlier samples \(\d+ of 102\)", content)
    assert "more characters" in content


def test_a_minimal_config_file_is_enough(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"model": {"num_layers": 4, "from_the_future": 1}}}')
    JsonlSink(str(tmp_path)).write({"step": 1, "loss": 2.0})
    content = report(str(tmp_path))
    assert "from_the_future" in content
    assert f"<h1>{tmp_path.name}</h1>" in content


def test_a_run_on_an_object_store_has_its_report_beside_it():
    workdir = "memory://test-report/run-7"
    write_atomic(f"{workdir}/config.json", '{"config": {}}')
    sink = JsonlSink(workdir)
    sink.write({"step": 1, "loss": 2.0})
    sink.close()
    assert write_run_report(workdir) == f"{workdir}/report.html"
    assert "<h1>run-7</h1>" in read_text(f"{workdir}/report.html")


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r'^no run in ".*": it has no config.json.*$'):
            write_run_report(str(folder))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="^no metrics in .* yet"):
        write_run_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"config\.json"):
        write_run_report(str(tmp_path))
