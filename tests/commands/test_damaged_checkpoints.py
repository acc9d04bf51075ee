"""A checkpoint that is not whole: one warning line and the last good one, or exit code 1 if none is left."""

import os
import shutil

import pytest

from tests.commands.runs import records


def _not_published(step):
    (step / "_CHECKPOINT_METADATA").unlink()


def _no_arrays(step):
    shutil.rmtree(step / "params" / "d")
    for folder in (step / "params").glob("ocdbt.process_*"):
        shutil.rmtree(folder)


def _truncated(step):
    for path in (step / "params").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)


def _no_meta(step):
    (step / "meta" / "metadata").write_text("{")


DAMAGES = {"not published": _not_published, "no arrays": _no_arrays, "truncated": _truncated, "no meta": _no_meta}
VERBS = {
    "eval": ["eval", "--json", "--checkpoint"],
    "generate": ["generate", "--json", "--max-new-tokens=2", "--checkpoint"],
    "inspect": ["inspect", "--json"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_eval_uses_the_last_good_checkpoint_with_one_warning(lm, run, damage):
    DAMAGES[damage](run / "checkpoints" / "20")
    done = lm(*VERBS["eval"], run)
    assert done.code == 0, done.err
    assert '"step": 16' in done.out
    assert done.err.count("\n") == 1
    assert done.err.startswith("lm: passing over a damaged checkpoint") and "checkpoints/20" in done.err


@pytest.mark.parametrize("verb", ["generate", "inspect"])
def test_every_reader_uses_the_last_good_checkpoint_with_one_warning(lm, run, verb):
    _not_published(run / "checkpoints" / "20")
    done = lm(*VERBS[verb], run)
    assert done.code == 0 and '"step": 16' in done.out
    assert done.err.count("\n") == 1 and "checkpoints/20" in done.err


@pytest.mark.parametrize("verb", VERBS)
def test_a_damaged_checkpoint_asked_for_by_its_step_is_refused(lm, run, verb):
    _no_meta(run / "checkpoints" / "20")
    _truncated(run / "checkpoints" / "20")
    line = lm(*VERBS[verb], run, "--step=20").refusal(1)
    assert "checkpoints/20" in line and "damaged" in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(lm, run, verb):
    for step in (run / "checkpoints").iterdir():
        _not_published(step)
    done = lm(*VERBS[verb], run)
    assert done.code == 1 and done.out == ""
    assert [line.startswith("lm: passing over") for line in done.err.splitlines()] == [True, True, False]
    assert "can be read" in done.err.splitlines()[-1]


def test_training_continues_from_the_last_good_checkpoint_and_keeps_it_until_a_newer_one_is_whole(lm, train, run):
    before = records(run)
    _truncated(run / "checkpoints" / "20")
    (run / "checkpoints" / "24.orbax-checkpoint-tmp").mkdir()
    done = train(run, "--config.checkpoint.keep=1")
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    assert sum("passing over a damaged checkpoint" in line and "checkpoints/20" in line for line in lines) == 1
    assert sum("ignoring half-written checkpoint" in line for line in lines) == 1
    assert "resumed at step 16 of 20" in lines
    assert [(r["step"], r["loss"]) for r in records(run)] == [(r["step"], r["loss"]) for r in before]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"20", "20.damaged"}
    assert '"step": 20' in lm(*VERBS["inspect"], run).out


def test_a_damaged_newer_checkpoint_never_displaces_a_good_one(lm, train, run):
    _truncated(run / "checkpoints" / "20")
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "99")
    assert train(run, "--config.checkpoint.keep=1").code == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"20", "99.damaged"}
    assert '"step": 20' in lm(*VERBS["inspect"], run).out


def test_training_refuses_to_start_over_when_every_checkpoint_is_damaged(train, run):
    before = records(run)
    for step in (run / "checkpoints").iterdir():
        _truncated(step)
    done = train(run)
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("lm: no checkpoint in")
    assert records(run) == before
