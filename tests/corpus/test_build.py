"""A corpus from raw files to shards: what comes out, what is refused, and that nothing done is lost."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm.__main__ import main
from lm.corpus.build import check_folder
from lm.data.dataset import open_data
from lm.errors import UsageError
from tests.corpus.small_corpus import write_corpus

STAGES = (
    "read",
    "references",
    "refine",
    "score",
    "dedup/signatures",
    "dedup/join",
    "dedup/extract",
    "dedup/verify",
    "dedup/cluster",
)
STAGES += ("dedup/paragraphs", "dedup/keep", "dedup/examples", "tokenizer", "shards")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A built corpus: its config and its folder."""
    folder = tmp_path_factory.mktemp("corpus")
    config = write_corpus(folder / "raw")
    assert main(["data", "build", "--config", str(config), "--out", str(folder / "out"), "--workers", "1"]) == 0
    return config, folder / "out"


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Return the hash of every file of a build but for what tells the time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("card.json", "card.html"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def card_of(folder: pathlib.Path) -> dict:
    card = json.loads((folder / "card.json").read_text())
    return {name: value for name, value in card.items() if name not in ("created", "seconds", "command")}


def test_every_domain_arrives_in_shards_and_the_card_says_what_went(built):
    _, out = built
    dataset, card = open_data(str(out)), card_of(out)
    texts = dict.fromkeys(("wiki", "books", "web", "code"), "")
    for split in dataset.splits:
        for entry, shard in zip(dataset.counts(split)["shards"], dataset.shards(split), strict=True):
            texts[entry["domain"]] += dataset.tokenizer.decode(shard.tokens[:-1].tolist())
    assert all(texts.values())
    assert "[[" not in texts["wiki"] and "{{" not in texts["wiki"] and "REDIRECT" not in texts["wiki"]
    assert "somebody@company.org" not in texts["web"] and "email@example.com" in texts["web"]
    assert "Welcome to our village" not in texts["web"]
    web = card["sources"]["web"]
    assert web["stages"][0]["documents"] == 60 and web["rejected"]["gopher_quality/short"] == 1
    assert card["sources"]["wiki"]["rejected"]["wikipedia/redirect"] == 1
    assert card["duplicates"]["exact"] == 1 and card["duplicates"]["near"] == 1
    assert sum(card["decontamination"]["sets"].values()) == 1
    total = sum(split["tokens"] for split in dataset.manifest["splits"].values())
    assert sum(source["stages"][-1]["tokens"] for source in card["sources"].values()) == total
    assert (out / "card.html").read_text().startswith("<!DOCTYPE html>")


def test_a_built_corpus_is_not_built_again_and_another_config_is_refused(built, capsys):
    config, out = built
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")}
    assert main(["data", "build", "--config", str(config), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")} == before
    assert main(["data", "build", "--config", str(config), "--out", str(out), "--config.seed=1"]) == 2
    assert "another config" in capsys.readouterr().err


def test_a_run_folder_is_not_taken_for_a_corpus(built, tmp_path, capsys):
    config, _ = built
    (tmp_path / "tokenizer.tiktoken").write_text("of a run")
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["data", "build", "--config", str(config), "--out", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err and (tmp_path / "tokenizer.tiktoken").read_text() == "of a run"


@pytest.mark.slow
def test_other_input_files_or_lost_shards_are_noticed_and_a_bad_file_among_many_is_passed_over(built, tmp_path, capsys):
    config, out = write_corpus(tmp_path / "raw"), tmp_path / "out"
    (tmp_path / "raw" / "books" / "picture.txt").write_bytes(bytes(100))  # no text: skipped
    command = ["data", "build", "--config", str(config), "--out", str(out), "--workers", "1"]
    assert main(command) == 0
    books = card_of(out)["sources"]["books"]
    assert books["stages"][0]["documents"] == 3 and books["skipped"][0]["where"] == "books/picture.txt"
    before = contents(out)
    (out / "manifest.json").unlink()
    next(iter(out.glob("wiki-*.bin"))).unlink()
    (out / "wiki-00009-train-00000.bin").write_bytes(b"of another config")
    assert main(command) == 0
    assert contents(out) == before
    (tmp_path / "raw" / "books" / "picture.txt").unlink()
    assert main(command) == 2
    assert "other input files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.sources.web.filters=gopher_qualty", 'Did you mean "gopher_quality"?'),
        ("--config.sources.web.reader=jsonlines", "expected one of"),
        ("--config.sources.wbe.reader=jsonl", 'Did you mean "web"?'),
        ("--config.sources.web.paths=/nowhere/*.jsonl", "/nowhere/*.jsonl"),
        ("--config.dedup.treshold=0.5", 'Did you mean "threshold"?'),
        ("--config.sources.web.min_quality=2", "at most 1"),
        ("--config.weights=(('web', 1.0),)", "weighting"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(built, tmp_path, capsys, override, said):
    config, _ = built
    assert main(["data", "build", "--config", str(config), "--out", str(tmp_path / "out"), override]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.slow
def test_a_damaged_file_is_named_the_rest_is_done_and_after_its_repair_only_that_is_left(tmp_path, capsys):
    config, out = write_corpus(tmp_path / "raw"), tmp_path / "out"
    dump = tmp_path / "raw" / "wiki.xml.bz2"
    whole = dump.read_bytes()
    dump.write_bytes(whole[: len(whole) // 2])
    command = ["data", "build", "--config", str(config), "--out", str(out), "--workers", "1"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert (
        "wiki.xml.bz2" in error and "truncated" in error and "are done and kept" in error and "Traceback" not in error
    )
    read = {path: path.stat().st_mtime_ns for path in (out / "work" / "read").rglob("*.json")}
    assert len(read) == 6  # three books, two files of the web, the code
    dump.write_bytes(whole)
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in read.items())


@pytest.mark.slow
def test_what_came_before_the_damage_is_kept_if_the_config_says_so(tmp_path):
    config, out = write_corpus(tmp_path / "raw"), tmp_path / "out"
    broken = tmp_path / "raw" / "web" / "1.jsonl.gz"
    import gzip

    broken.write_bytes(gzip.compress((tmp_path / "raw" / "web" / "1.jsonl").read_bytes())[:-200])
    (tmp_path / "raw" / "web" / "1.jsonl").unlink()
    command = ["data", "build", "--config", str(config), "--out", str(out), "--workers", "1", "--config.damaged=keep"]
    assert main(command) == 0
    (damage,) = card_of(out)["sources"]["web"]["damaged"]
    assert "1.jsonl.gz" in damage["path"] and "truncated" in damage["reason"]


def build_process(config, out, *options) -> subprocess.Popen:
    command = [sys.executable, "-m", "lm", "data", "build", "--config", str(config), "--out", str(out), *options]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_in_every_stage_a_build_ends_in_the_same_bytes(built, tmp_path, workers):
    config, whole = built
    out, killed = tmp_path / "out", []
    for stage in STAGES:
        if any((out / "work" / stage).rglob("*")):  # the kill before came too late: this one had begun
            continue
        process = build_process(config, out, "--workers", str(workers))
        while process.poll() is None and not any((out / "work" / stage).rglob("*")):
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed.append(stage)
        process.wait()
    assert len(killed) >= len(STAGES) // 2, killed  # some are over within a poll
    assert build_process(config, out, "--workers", str(workers)).wait() == 0
    leftovers = {name for name in contents(out) if name.endswith(".tmp") or "/.write-" in name}
    mine, other = contents(out), contents(whole)
    # paths differ in tasks' markers, since the folder's name is among their arguments
    same = {name for name in other if not name.endswith(".json") or name == "manifest.json"}
    assert {name: mine.get(name) for name in same} == {name: other[name] for name in same}
    assert set(mine) - leftovers == set(other)
    assert card_of(out) == card_of(whole)


@pytest.mark.slow
def test_a_signal_ends_a_build_with_42_and_the_same_command_continues(built, tmp_path):
    config, whole = built
    process = build_process(config, tmp_path / "out", "--workers", "2")
    while not list((tmp_path / "out" / "work" / "refine").rglob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 42
    assert build_process(config, tmp_path / "out").wait() == 0
    assert card_of(tmp_path / "out") == card_of(whole)


def test_a_work_folder_inside_the_corpus_may_have_any_name(tmp_path):
    (tmp_path / "stages").mkdir()
    check_folder(str(tmp_path), str(tmp_path / "stages" / "deeper"))
    with pytest.raises(UsageError, match="stages"):
        check_folder(str(tmp_path), str(tmp_path / "work"))
