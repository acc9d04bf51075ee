"""`lm eval`, `generate`, `inspect`: their results on stdout, and nothing else there."""

import io
import json
import math
import sys

import pytest

from tests.commands.runs import REPOSITORY, finish, start


def test_eval_json_is_one_object_whose_figures_agree(lm, finished):
    done = lm("eval", "--checkpoint", finished, "--json")
    assert done.code == 0 and done.err == "" and done.out.count("\n") == 1
    result = json.loads(done.out)
    assert {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"} <= set(result)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    nats = result["loss"] * result["tokens"]
    assert result["bits_per_byte"] == pytest.approx(nats / result["bytes"] / math.log(2))
    assert result["step"] == 20 and result["data"] == "validation"


def test_eval_of_a_text_file_counts_its_bytes_and_a_step_can_be_chosen(lm, finished, corpus, tmp_path):
    text = tmp_path / "part.txt"
    text.write_text(corpus.read_text()[:5000])
    last, earlier = (
        json.loads(lm("eval", "--checkpoint", finished, f"--data={text}", "--json", *step).out)
        for step in ([], ["--step=16"])
    )
    assert last["bytes"] == earlier["bytes"] == 5000
    assert earlier["step"] == 16 and last["loss"] != earlier["loss"]


def test_eval_for_people_names_units_and_windows(lm, finished):
    out = lm("eval", "--checkpoint", finished, "--stride=8").out
    assert "bits per byte:" in out and "nats per token" in out and "stride 8" in out


def generate(lm, finished, *arguments):
    done = lm("generate", "--checkpoint", finished, "--max-new-tokens=12", *arguments)
    assert done.code == 0 and done.err == "", done.err
    return done.out


def test_the_same_seed_gives_the_same_text_streamed_or_not_from_an_option_or_stdin(lm, finished, monkeypatch):
    streamed = generate(lm, finished, "--prompt=abc", "--seed=1")
    result = json.loads(generate(lm, finished, "--prompt=abc", "--seed=1", "--json"))
    assert result["prompt"] == "abc" and result["step"] == 20 and result["seed"] == 1
    assert streamed == f"abc{result['samples'][0]}\n" and len(streamed) > 5
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    assert generate(lm, finished, "--prompt=-", "--seed=1") == streamed
    assert generate(lm, finished, "--prompt=abc", "--seed=2") != streamed


def test_temperature_0_does_not_depend_on_the_seed(lm, finished):
    texts = {generate(lm, finished, "--prompt=abc", "--temperature=0", f"--seed={seed}") for seed in (1, 2)}
    assert len(texts) == 1


@pytest.mark.slow
def test_several_samples_differ_and_each_is_printed(lm, finished):
    result = json.loads(generate(lm, finished, "--prompt=abc", "--num-return-sequences=3", "--json"))
    assert len(set(result["samples"])) == 3
    out = generate(lm, finished, "--prompt=abc", "--num-return-sequences=3")
    assert out == "".join(f"--- sample {n}\nabc{text}\n" for n, text in enumerate(result["samples"], 1))


def test_inspect_reads_a_checkpoint_without_importing_jax(finished):
    code = f"""
import sys
from lm.__main__ import main
assert main(["inspect", {str(finished)!r}, "--json"]) == 0
assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib", "flax", "orbax")]
"""
    exit_code, out, err = finish(start(code=code))
    assert exit_code == 0 and err == "", err
    result = json.loads(out)
    info = json.loads((finished / "config.json").read_text())
    assert result["parameters"] == info["num_parameters"] == sum(math.prod(a["shape"]) for a in result["arrays"])
    assert result["step"] == 20 and result["steps"] == [16, 20] and result["fingerprint"] == info["fingerprint"]
    assert result["data"]["rows_consumed"] == 20 * 16
    assert {"params", "opt_state"} <= set(result["items"])


def test_inspect_of_a_config_agrees_with_the_trained_model(lm, finished, config):
    result = json.loads(lm("inspect", "--config", config, "--json").out)
    assert result["parameters"] == json.loads((finished / "config.json").read_text())["num_parameters"]
    assert result["tokens_per_step"] == 16 * 32
    assert result["training_tokens"] == 20 * 16 * 32
    assert result["training_flops"] == 20 * 16 * 32 * result["train_flops_per_token"]
    assert "one of them" in lm("inspect").refusal(2)


def test_inspect_of_a_config_counts_each_stage_of_its_batch_schedule(lm, config):
    stages = "--config.data.stages=((0,32,8),(5,8,32))"
    whole, staged = (json.loads(lm("inspect", "--config", config, "--json", *more).out) for more in ((), (stages,)))
    assert staged["tokens_per_step"] == {"0": 256, "5": 256}
    assert staged["training_tokens"] == 20 * 256
    # Attention is cheaper in the quarter of the tokens that sees short rows.
    assert 0.9 < staged["training_flops"] / (staged["training_tokens"] * whole["train_flops_per_token"]) < 1


EXPERIMENTS = sorted(path for path in (REPOSITORY / "experiments").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_resolves_and_says_how_to_run_it(lm, corpus, path):
    done = lm("inspect", "--config", path, "--json", f"--config.data.path={corpus}", "--config.model.vocab_size=65536")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] > 0
    assert f"lm train --config experiments/{path.name}" in path.read_text()


def test_inspect_of_a_preset_and_of_a_config_for_other_hardware(lm, config):
    result = json.loads(lm("inspect", "--preset", "gpt2", "--json").out)
    assert result["parameters"] == 124_439_808
    assert "tokens_per_step" not in result
    assert 'Did you mean "gpt2_xl"?' in lm("inspect", "--preset", "gpt2_xll").refusal(2)
    # What only an accelerator can do is looked at on a laptop; a typo is refused there too.
    assert lm("inspect", "--config", config, "--config.model.remat=offload:block_input").code == 0
    assert lm("inspect", "--config", config, "--config.precision.matmul=float8").code == 0
    assert "config.model.remat" in lm("inspect", "--config", config, "--config.model.remat=ful").refusal(2)
