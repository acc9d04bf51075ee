"""A checkpoint that is not whole: one warning line and the last good one, or exit code 1 if none is left."""

import os
import shutil

import pytest

from tests.checkpoint.common import change_number
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


def _truncated_tree(step):
    os.truncate(step / "params" / "manifest.ocdbt", 60)


def _one_bit(step):
    change_number(step, "params", "embed/tokens/embedding")


def _no_meta(step):
    (step / "meta" / "metadata").write_text("{")


DAMAGES = {
    "not published": _not_published,
    "no arrays": _no_arrays,
    "truncated": _truncated,
    "truncated tree": _truncated_tree,
    "one number": _one_bit,
    "no meta": _no_meta,
}
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


@pytest.mark.parametrize("damage", ["truncated tree", "one number"])
def test_training_repeats_from_the_last_good_checkpoint_whatever_is_wrong_with_the_newest(train, run, damage):
    before = records(run)
    DAMAGES[damage](run / "checkpoints" / "20")
    done = train(run)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if "damaged" in line]
    assert len(lines) == 1 and "checkpoints/20" in lines[0] and 'set aside as "20.damaged"' in lines[0]
    assert "resumed at step 16 of 20" in done.err
    assert [(r["step"], r["loss"]) for r in records(run)] == [(r["step"], r["loss"]) for r in before]


def test_stray_and_empty_folders_are_told_of_by_training_and_ignored_by_all(lm, train, run):
    shutil.rmtree(run / "checkpoints" / "20")
    (run / "checkpoints" / "20").mkdir()
    (run / "checkpoints" / "40").mkdir()
    done = lm(*VERBS["eval"], run)
    assert done.code == 0 and '"step": 16' in done.out and done.err == ""
    done = train(run)
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if "holds no checkpoint" in line] == [
        f'ignoring "{run / "checkpoints" / name}", which holds no checkpoint' for name in ("20", "40")
    ]
    assert "resumed at step 16 of 20" in done.err
    assert '"step": 20' in lm(*VERBS["inspect"], run).out


def test_verification_can_be_turned_off(train, run):
    _one_bit(run / "checkpoints" / "20")
    done = train(run, "--config.checkpoint.verify=False")
    assert done.code == 0 and "resumed at step 20 of 20" in done.err
