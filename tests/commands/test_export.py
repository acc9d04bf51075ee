"""`lm export`: a folder for transformers, without JAX; what cannot be expressed is refused by its field."""

import json

import pytest

from tests.commands.runs import files, finish, start


def test_a_run_is_exported_without_jax(finished, tmp_path):
    arguments = ["export", "--checkpoint", str(finished), "--out", str(tmp_path / "out"), "--json"]
    code = f"import sys; from lm.__main__ import main; code = main({arguments!r}); assert 'jax' not in sys.modules; sys.exit(code)"
    exit_code, out, err = finish(start(code=code))
    assert exit_code == 0 and err == "", err
    result = json.loads(out)
    assert result["architecture"] == "LlamaForCausalLM" and result["step"] == 20 and result["weights"] == "params"
    assert set(files(tmp_path / "out")) == set(result["files"])
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["rope_theta"] == settings["rope_parameters"]["rope_theta"] == 10000.0
    assert settings["torch_dtype"] == settings["dtype"] == "float32"
    assert settings["max_position_embeddings"] == 32
    barred = json.loads((tmp_path / "out" / "generation_config.json").read_text())["suppress_tokens"]
    assert barred == list(range(300, 384)), "the vocabulary's padding"
    assert settings["vocab_size"] == 384


def test_half_the_bytes_in_bfloat16(lm, finished, tmp_path):
    for name in ("float32", "bfloat16"):
        assert lm("export", "--checkpoint", finished, "--out", tmp_path / name, "--dtype", name).code == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "bfloat16")]
    assert sizes[1] < 0.52 * sizes[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--step", "3"], "no checkpoint of step 3"),
        (["--weights", "ema"], "keeps no moving average"),
    ],
)
def test_what_is_not_there_is_one_line(lm, finished, tmp_path, arguments, says):
    done = lm("export", "--checkpoint", finished, "--out", tmp_path / "out", *arguments)
    assert says in done.refusal(2)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(lm, finished, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    assert "is not empty" in lm("export", "--checkpoint", finished, "--out", tmp_path).refusal(2)


def test_a_model_that_transformers_cannot_compute_is_refused_by_its_field(lm, run, tmp_path):
    info = json.loads((run / "config.json").read_text())
    info["config"]["model"]["value_embeddings"] = True
    (run / "config.json").write_text(json.dumps(info))
    done = lm("export", "--checkpoint", run, "--out", tmp_path / "out")
    assert "config.model.value_embeddings=True" in done.refusal(2)
    assert not (tmp_path / "out").exists()


def test_an_export_may_lie_on_an_object_store(lm, finished, tmp_path):
    from lm.storage import list_names, read_bytes

    assert lm("export", "--checkpoint", finished, "--out", "memory://exported").code == 0
    assert lm("export", "--checkpoint", finished, "--out", tmp_path / "out").code == 0
    assert {name: read_bytes(f"memory://exported/{name}") for name in list_names("memory://exported")} == files(
        tmp_path / "out"
    )
