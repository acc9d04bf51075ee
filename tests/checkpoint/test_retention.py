"""Which checkpoints stay, which are listed, and that none is lost before a newer one is whole."""

import shutil

import pytest

from lm.checkpoint.layout import finished_steps, strays, superfluous, unfinished
from lm.checkpoint.ranking import best_step
from lm.checkpoint.store import Checkpoints
from lm.errors import ConfigError, UsageError
from tests.checkpoint.common import names, save, state, targets, written
from tests.train.common import small_config


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"keep": 2}, [10, 20, 30]),
        ({"keep": 1, "keep_every": 20}, [10, 30]),
        ({"keep": 1, "best": [30]}, [10, 20, 40]),
        ({"keep": 9}, []),
    ],
)
def test_what_does_not_stay(options, gone):
    assert superfluous([10, 20, 30, 40, 50], **{"keep_every": None, "best": (), **options}) == gone


def test_the_best_stay_by_their_validation_and_the_best_of_all_is_known(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1, keep_best=2)
    for step, figure in {1: 3.0, 2: 1.5, 3: 2.0, 4: 2.5, 5: None}.items():
        save(checkpoints, step, **({} if figure is None else {"bits_per_byte": figure}))
    checkpoints.close()
    assert finished_steps(str(tmp_path)) == [2, 3, 5]
    assert best_step(str(tmp_path)) == 2


def test_without_an_evaluated_checkpoint_there_is_no_best(tmp_path):
    written(tmp_path, 1)
    with pytest.raises(UsageError, match="was evaluated"):
        best_step(str(tmp_path))


def test_keep_best_needs_checkpoints_that_are_evaluated():
    fine = {"checkpoint.keep_best": "1", "checkpoint.every_steps": "100", "eval.every_steps": "50"}
    assert small_config(**fine).checkpoint.keep_best == 1
    with pytest.raises(ConfigError, match=r"keep_best=1.*multiple of eval.every_steps=70"):
        small_config(**fine | {"eval.every_steps": "70"})


def test_every_kth_stays(tmp_path):
    written(tmp_path, 1, 2, 3, 4, 5, keep=1, keep_every=2)
    assert finished_steps(str(tmp_path)) == [2, 4, 5]


def test_stray_and_empty_folders_are_no_checkpoints(tmp_path):
    written(tmp_path, 10)
    (tmp_path / "40").mkdir()
    (tmp_path / "50").mkdir()
    (tmp_path / "50" / "notes.txt").write_text("mine")
    (tmp_path / "60").write_text("")
    (tmp_path / "0070").mkdir()
    (tmp_path / "80.orbax-checkpoint-tmp").mkdir()
    assert finished_steps(str(tmp_path)) == [10]
    assert [path.rsplit("/", 1)[1] for path in strays(str(tmp_path))] == ["40", "50", "60"]
    lines: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), warn=lines.append)
    assert checkpoints.restore(targets(state())).step == 10 and lines == []
    checkpoints.start_writing()
    assert [line.split('"')[1].rsplit("/", 1)[1] for line in lines] == ["80.orbax-checkpoint-tmp", "40", "50", "60"]
    assert (tmp_path / "50" / "notes.txt").exists(), "what is not ours stays"
    assert unfinished(str(tmp_path)) == []
    save(checkpoints, 40)
    checkpoints.close()
    assert finished_steps(str(tmp_path)) == [10, 40]


def test_an_empty_newest_step_is_passed_over(tmp_path):
    written(tmp_path, 10, 20)
    for item in (tmp_path / "20").iterdir():
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    assert finished_steps(str(tmp_path)) == [10]
    for item in ("params", "meta"):
        (tmp_path / "20" / item).mkdir()
    lines: list[str] = []
    assert Checkpoints(str(tmp_path), warn=lines.append).restore(targets(state())).step == 10
    assert len(lines) == 1 and str(tmp_path / "20") in lines[0]


def test_a_lower_step_after_a_rollback_is_what_resumes(tmp_path):
    written(tmp_path, 10, 20, 30, keep=3)
    lines: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), keep=3, warn=lines.append)
    assert checkpoints.restore(targets(state()), step=10).step == 10
    save(checkpoints, 15)
    checkpoints.close()
    assert Checkpoints(str(tmp_path)).restore(targets(state())).step == 15
    assert names(tmp_path) == {"10", "15", "20.rolled-back", "30.rolled-back"}
    assert len(lines) == 2 and all("set aside" in line for line in lines)


def test_the_same_step_again_takes_nothing_away_before_it_is_whole(tmp_path):
    written(tmp_path, 10)
    assert len(written(tmp_path, 10)) == 1
    assert names(tmp_path) == {"10", "10.rolled-back"}


def test_on_an_object_store_setting_aside_moves_everything_below(tmp_path):
    from lm.storage import filesystem, read_text, write_atomic

    folder = "memory://retention/checkpoints"
    for name in ("commit_success.txt", "params/d/0", "meta/metadata"):
        write_atomic(f"{folder}/20/{name}", name)
    assert finished_steps(folder) == [20]
    checkpoints = Checkpoints(folder)
    assert checkpoints._set_aside(20, "damaged") == "20.damaged"
    assert finished_steps(folder) == [] and unfinished(folder) == [] and strays(folder) == []
    assert read_text(f"{folder}/20.damaged/params/d/0") == "params/d/0"
    assert not filesystem(folder).exists(f"{folder}/20")
