"""`lm inspect CHECKPOINT`: arrays, items, differences, one array to a file; a step's folder wherever a run's is."""

import json
import shutil

import numpy as np
import pytest

from lm import checkpoint as checkpoints
from lm.checkpoint.contents import StoredArray
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.store import Checkpoints
from lm.errors import DamagedFileError
from tests.commands.runs import XLA_FLAGS, finish, start

PATH = "layers/mlp/up/kernel"
# What a machine without JAX has; everything else of this environment is refused.
NO_JAX = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "etils", "ml_collections", "tiktoken"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from lm.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def inspect_json(lm, *arguments):
    done = lm("inspect", *arguments, "--json")
    assert done.code == 0 and done.err == "", done.err
    return json.loads(done.out)


def test_items_lists_the_optimizers_arrays_too(lm, finished):
    result = inspect_json(lm, finished, "--items")
    paths = [a["path"] for a in result["arrays"]]
    assert PATH in paths and any(path.startswith("opt_state/") for path in paths)
    assert len(paths) == sum(of["arrays"] for of in result["totals"].values())
    assert not any(path.startswith("opt_state/") for path in (a["path"] for a in inspect_json(lm, finished)["arrays"]))
    assert result["config"]["model"]["d_model"] == 32
    text = lm("inspect", finished, "--items").out
    assert "opt_state/" in text and "norm" in text and "step: 20" in text


@pytest.mark.parametrize("array", [PATH, "final_norm/scale", "count"])
def test_one_array_is_written_to_a_file(lm, finished, tmp_path, array):
    if array == "count":  # a number: it has no dimensions
        array = next(path for path in checkpoints.open(str(finished)).arrays if path.endswith("/count"))
    done = lm("inspect", finished, "--step=16", "--array", array, "--out", tmp_path / "a.npy")
    assert done.code == 0 and array in done.out
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), checkpoints.open(str(finished), 16).arrays[array][...])


def test_bfloat16_is_written_as_float32(lm, tmp_path):
    import jax.numpy as jnp

    writer = Checkpoints(str(tmp_path / "checkpoints"))
    writer.save(1, {"params": {"a": jnp.full((2, 3), 1.5, jnp.bfloat16)}}, data={}, meta={})
    writer.close()
    lm("inspect", tmp_path / "checkpoints" / "1", "--array=a", "--out", tmp_path / "a.npy")
    written = np.load(tmp_path / "a.npy")
    assert written.dtype == np.float32 and (written == 1.5).all()


def test_the_difference_of_two_steps_and_of_one_with_itself(lm, finished):
    step = finished / "checkpoints" / "16"
    result = inspect_json(lm, step, "--diff", finished)
    assert (result["a"]["step"], result["b"]["step"]) == (16, 20)
    assert 0 < result["params"]["relative"] < 1 and len(result["params"]["arrays"]) > 5
    assert inspect_json(lm, finished, "--diff", finished, "--items")["opt_state"]["identical"]
    text = lm("inspect", step, "--diff", finished, "--diff-step=20").out
    assert PATH in text and "of a's norm" in text
    assert "identical" in lm("inspect", step, "--diff", finished, "--diff-step=16").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--array=layers/mlp/upp/kernel", "--out=a.npy"], 'Did you mean "layers/mlp/up/kernel"'),
        (["--array=a"], "go together"),
        (["--verify", "--diff=b"], "one of them"),
        (["--diff-step=3"], "--diff"),
        (["--diff=nowhere"], 'no run in "nowhere"'),
    ],
    ids=str,
)
def test_wrong_questions_are_refused(lm, finished, arguments, expected):
    assert expected in lm("inspect", finished, *arguments).refusal(2)


def test_questions_about_a_checkpoint_need_one(lm):
    assert "--verify needs a CHECKPOINT" in lm("inspect", "--preset=llama_1b", "--verify").refusal(2)


def test_an_array_that_cannot_be_written_is_one_line(lm, finished, tmp_path):
    assert "cannot write" in lm("inspect", finished, f"--array={PATH}", f"--out={tmp_path}/no/a.npy").refusal(1)


def test_a_newest_checkpoint_whose_arrays_cannot_be_read_is_passed_over(lm, run):
    for path in (run / "checkpoints" / "20" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    done = lm("inspect", run, "--json")
    assert done.code == 0 and json.loads(done.out)["step"] == 16
    assert done.err.count("\n") == 1 and "passing over a damaged checkpoint" in done.err
    assert "damaged" in lm("inspect", run, "--step=20").refusal(1)


def test_verify_names_the_arrays_that_are_not_what_was_saved(lm, run):
    assert "intact: step 20" in lm("inspect", run, "--verify").out
    data = max((run / "checkpoints" / "20" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert "params/" in lm("inspect", run, "--verify").refusal(1)
    assert lm("inspect", run, "--verify", "--step=16").code == 0


def test_verify_notices_that_a_whole_item_is_gone(lm, run):
    shutil.rmtree(run / "checkpoints" / "20" / "opt_state")
    assert "opt_state" in lm("inspect", run, "--verify").refusal(1)


def test_an_array_that_cannot_be_read_to_its_end_leaves_the_file_as_it_was(lm, finished, tmp_path, monkeypatch):
    def first_piece(array):
        yield 0, array[0]
        raise DamagedFileError("the second piece cannot be read")

    monkeypatch.setattr(StoredArray, "pieces", first_piece)
    out = tmp_path / "a.npy"
    out.write_text("before")
    assert "second piece" in lm("inspect", finished, f"--array={PATH}", f"--out={out}").refusal(1)
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "before"


@pytest.mark.slow
def test_eval_and_generate_take_a_steps_folder(lm, finished):
    step = finished / "checkpoints" / "16"
    by_folder, by_step = (
        json.loads(lm("eval", "--checkpoint", *which, "--max-tokens=500", "--json").out)
        for which in ([step], [finished, "--step=16"])
    )
    assert by_folder["step"] == by_step["step"] == 16 and by_folder["loss"] == by_step["loss"]
    assert json.loads(lm("generate", "--checkpoint", step, "--max-new-tokens=2", "--json").out)["step"] == 16
    assert "leave out --step 20" in lm("eval", "--checkpoint", step, "--step=20").refusal(2)


def test_a_step_without_its_run_cannot_be_evaluated_and_says_so(lm, finished, tmp_path):
    alone = shutil.copytree(finished / "checkpoints" / "16", tmp_path / "16")
    assert inspect_json(lm, alone)["step"] == 16
    assert "no run in" in lm("eval", "--checkpoint", alone).refusal(2)


def test_inspect_works_where_jax_is_not_installed(finished):
    for arguments in (["--items"], ["--diff", finished, "--diff-step=16"]):
        code, out, err = finish(start("inspect", finished, *arguments, code=NO_JAX))
        assert code == 0 and err == "" and PATH in out, err


@pytest.mark.slow
def test_written_on_eight_devices_inspected_without_jax_and_evaluated_on_one(config, tmp_path):
    eight = f"{XLA_FLAGS} --xla_force_host_platform_device_count=8"
    parallel = ["--config.parallel.data=1", "--config.parallel.fsdp=4", "--config.parallel.tensor=2"]
    code, _, err = finish(start("train", f"--config={config}", f"--workdir={tmp_path}", *parallel, XLA_FLAGS=eight))
    assert code == 0 and "8 x cpu" in err, err
    code, out, err = finish(start("inspect", tmp_path, "--json", code=NO_JAX))
    assert code == 0, err
    kernel = next(a for a in json.loads(out)["arrays"] if a["path"] == PATH)
    assert kernel["norm"] == pytest.approx(np.linalg.norm(checkpoints.open(str(tmp_path)).arrays[PATH][...]), rel=1e-6)
    losses = []
    for flags in (XLA_FLAGS, eight):
        code, out, err = finish(start("eval", "--checkpoint", tmp_path, "--json", XLA_FLAGS=flags))
        assert code == 0, err
        losses.append(json.loads(out)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.peer
@pytest.mark.slow
def test_an_environment_of_numpy_tensorstore_and_fsspec_is_enough(finished, tmp_path):
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "plain"], check=True)
    python = tmp_path / "plain" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "tensorstore", "fsspec"], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(__import__('lm').__path__[0] + '/..')!r}); from lm.__main__ import main;"
    )
    code += f"sys.exit(main(['inspect', {str(finished)!r}, '--items', '--json']))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["step"] == 20, done.stderr


def test_flipped_bits_are_found_by_whatever_reads_a_whole_array(lm, finished, tmp_path):
    """Orbax and TensorStore return them without a word; so listing, --array, --diff and export sum up what they read."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    step = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    largest = max((step / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    reader = CheckpointReader(str(step))
    damaged = reader.verify("params")
    assert len(damaged) == 1
    array = damaged[0]
    commands = [
        ("inspect", step),
        ("inspect", step, "--array", array, "--out", tmp_path / "x.npy"),
        ("inspect", step, "--diff", finished),
        ("inspect", finished, "--diff", step),
    ]
    for command in commands:
        assert array in lm(*command).refusal(1)
    with pytest.raises(DamagedFileError, match=array):
        reader.read("params", array)
