"""`lm fit-scaling`: from a sweep's folder to a predicted loss."""

import itertools
import json
import math

import pytest

from lm.config import Config, to_dict
from lm.model.flops import parameter_counts
from lm.resolve import resolve
from lm.sweep.scaling import Law

LAW = Law(E=1.2, A=60.0, B=120.0, alpha=0.35, beta=0.35)
WIDTHS, TOKENS = (16, 32, 64, 128), (100_000, 200_000, 400_000, 800_000)


def config_of(width):
    config = to_dict(Config())
    config["model"] |= {"d_model": width, "num_heads": 2, "vocab_size": 512, "num_layers": 2}
    config["data"] |= {"source": "stdlib", "tokenizer_vocab_size": 512}
    return to_dict(resolve(config))


def size_of(width):
    return parameter_counts(resolve(config_of(width)).model)


def add(folder, variant, width, tokens, *, factor=1.0, seed=0, **changes):
    loss = factor * LAW.loss(size_of(width)["non_embedding"], tokens)
    name = f"{variant}-{seed}"
    result = {"id": name, "variant": variant, "overrides": {}, "seed": seed, "status": "done", "failure": None}
    result |= {"final": {"step": 9, "loss": loss, "bits_per_byte": loss / 2.5}, "tokens": tokens}
    result |= {"num_parameters": size_of(width)["total"], "config": config_of(width)} | changes
    (folder / "results" / f"{name}.json").write_text(json.dumps(result))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["variants"] += (
        [] if any(v["name"] == variant for v in plan["variants"]) else [{"name": variant, "overrides": {}}]
    )
    plan["runs"].append({"id": name, "variant": variant, "seed": seed})
    (folder / "sweep.json").write_text(json.dumps(plan))


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                **{"name": "sizes", "metric": "loss", "match": "tokens", "baseline": f"{WIDTHS[0]}x{TOKENS[0]}"},
                **{"seeds": [0], "base": {}, "variants": [], "runs": []},
            }
        )
    )
    for number, (width, tokens) in enumerate(itertools.product(WIDTHS, TOKENS)):
        add(tmp_path, f"{width}x{tokens}", width, tokens, factor=1 + 0.002 * math.sin(7 * number))
    return tmp_path


def fitted(lm, *arguments):
    done = lm("fit-scaling", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_held_back_larger_run_is_predicted_and_not_fitted(lm, sweep):
    add(sweep, "large", 256, 2_000_000)
    result = fitted(lm, sweep, "--hold-back=large")
    assert result["runs"] == 16 and result["planned_runs"] == 17
    (row,) = result["predictions"]
    assert row["name"] == "large" and row["measured"] == pytest.approx(LAW.loss(size_of(256)["non_embedding"], 2e6))
    assert row["low"] < row["measured"] < row["high"]
    assert abs(row["error"]) < 0.02 and row["half_width"] < 0.03
    assert fitted(lm, sweep)["runs"] == 17


def test_a_config_file_is_placed_by_its_own_parameters_and_tokens(lm, sweep, tmp_path):
    experiment = tmp_path / "larger.py"
    experiment.write_text(
        "from lm.config import default\n\n\ndef get_config():\n    config = default()\n"
        "    config.data.tokenizer_vocab_size = 512\n    config.model.num_layers = 2\n    config.model.num_heads = 2\n"
        "    config.optimizer.num_steps = 100\n    return config\n"
    )
    batch = Config().data.batch_size * Config().data.sequence_length
    (row,) = fitted(lm, sweep, "--predict", experiment, "--config.model.d_model=256")["predictions"]
    assert row["parameters"] == size_of(256)["non_embedding"] and row["tokens"] == 100 * batch
    told = lm("fit-scaling", sweep, "--predict", experiment, "--config.data.tokenizer_vocab_size=1024").refusal(2)
    assert "--metric bits_per_byte" in told


def test_people_read_the_law_the_prediction_with_its_interval_and_the_best_allocation(lm, sweep):
    done = lm("fit-scaling", sweep, "--predict-params=2e6", "--predict-tokens=2e6", "--flops=1e13")
    assert done.code == 0 and done.err == ""
    assert "L(N, D) = " in done.out and "16 runs" in done.out
    assert "2.00M parameters on 2.00M tokens: predicted " in done.out and "95 % interval" in done.out
    assert "best for 1e+13 FLOPs: " in done.out


def test_a_prediction_far_beyond_the_runs_says_so(lm, sweep):
    assert "N is more than 10 times" in lm("fit-scaling", sweep, "--predict-params=1e9", "--predict-tokens=1e6").err


def test_of_variants_with_one_size_and_tokens_the_best_counts_and_failed_runs_do_not(lm, sweep):
    expected = fitted(lm, sweep)
    add(sweep, "badly_tuned", 64, TOKENS[1], factor=1.5)
    add(sweep, "diverged", 64, TOKENS[2], status="failed", final=None, failure="the loss is not finite")
    found = fitted(lm, sweep)
    assert found["law"] == expected["law"] and found["runs"] == 16 and found["planned_runs"] == 18


def test_seeds_of_a_variant_are_runs_of_their_own(lm, sweep):
    add(sweep, "16x100000", 16, 100_000, seed=1, factor=1.01)
    assert fitted(lm, sweep)["runs"] == 17


def test_the_metric_and_what_counts_as_a_parameter_can_be_chosen(lm, sweep):
    loss, bits, total = (
        fitted(lm, sweep, "--predict-params=1e6", "--predict-tokens=1e6", *options)
        for options in ([], ["--metric=bits_per_byte"], ["--parameters=total"])
    )
    ratio = loss["predictions"][0]["predicted"] / bits["predictions"][0]["predicted"]
    assert ratio == pytest.approx(2.5, rel=0.001)
    assert total["law"]["A"] != loss["law"]["A"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_is_written(lm, sweep, tmp_path, ending):
    add(sweep, "large", 256, 2_000_000)
    out = tmp_path / f"law.{ending}"
    assert lm("fit-scaling", sweep, "--hold-back=large", f"--out={out}").code == 0
    assert out.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[ending]


def test_every_mistake_is_one_clear_line(lm, sweep, tmp_path):
    assert "no sweep in" in lm("fit-scaling", tmp_path / "nowhere").refusal(2)
    assert "belong together" in lm("fit-scaling", sweep, "--predict-params=1e6").refusal(2)
    assert "expected 1 or more" in lm("fit-scaling", sweep, "--flops=0").refusal(2)
    assert ".png or .svg" in lm("fit-scaling", sweep, "--out=law.pdf").refusal(2)
    assert "needs --predict FILE" in lm("fit-scaling", sweep, "--config.seed=1").refusal(2)
    assert '"large" is not a finished variant' in lm("fit-scaling", sweep, "--hold-back=large").refusal(2)
    for result in sorted((sweep / "results").iterdir())[:9]:
        result.unlink()
    assert "at least 8 finished runs" in lm("fit-scaling", sweep).refusal(2)
    max((sweep / "results").iterdir()).write_text("{")
    assert "is damaged" in lm("fit-scaling", sweep).refusal(1)


def test_losses_per_token_of_different_tokenizers_are_not_mixed(lm, sweep):
    other = config_of(64)
    other["data"]["tokenizer_vocab_size"] = 1024
    add(sweep, "other", 64, 300_000, config=other)
    assert "--metric bits_per_byte" in lm("fit-scaling", sweep).refusal(2)
    assert fitted(lm, sweep, "--metric=bits_per_byte")["runs"] == 17
