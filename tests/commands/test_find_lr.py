"""`lm find-lr` from the command line."""

import json

import pytest

from tests.commands.runs import files, finish, start

MISTAKES = {
    "range upside down": (["--low=1", "--high=1e-3"], "--low 1 --high 0.001"),
    "range from zero": (["--low=0"], "--low 0"),
    "range without end": (["--high=inf"], "--high inf"),
    "no range at all": (["--low=nan"], "--low nan"),
    "too few steps": (["--steps=5"], "--steps 5"),
    "no steps": (["--search-steps=0"], "--search-steps 0"),
    "negative search": (["--search=-1"], "--search -1"),
    "vmap of nothing": (["--search=0", "--vmap"], "--vmap"),
    "no run": (["--checkpoint=/nowhere/run"], "/nowhere/run"),
    "no config": (["--config=nowhere.py"], "nowhere.py"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(lm, config, tmp_path, case):
    arguments, expected = MISTAKES[case]
    line = lm("find-lr", "--config", config, "--workdir", tmp_path / "out", *arguments).refusal(2)
    assert expected in line
    assert files(tmp_path) == {}


@pytest.fixture(scope="module")
def found(config, tmp_path_factory):
    """One search on the shared config, from the command line: its folder, its stdout and its stderr."""
    folder = tmp_path_factory.mktemp("found")
    code, out, err = finish(
        start("find-lr", "--config", config, "--workdir", folder, "--steps", 40, "--config.optimizer.num_steps=40")
    )
    assert code == 0, err
    return folder, out, err


@pytest.mark.slow
def test_one_line_says_what_to_set_and_by_which_rule_and_where_the_plot_is(found):
    folder, out, err = found
    assert out.count("\n") == 1
    assert out.startswith("--config.optimizer.learning_rate=") and "(search; steepest " in out
    assert out.rstrip().endswith(str(folder / "find_lr.png"))
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_json_has_every_point_and_the_rules_suggestions_and_the_plot_is_a_picture(found, config):
    folder, out, _ = found
    assert sorted(files(folder)) == ["find_lr.json", "find_lr.png"]
    result = json.loads((folder / "find_lr.json").read_text())
    assert result["rule"] == "search" and result["suggestion"] == result["suggestions"]["search"]
    assert set(result["suggestions"]) == {"steepest", "valley", "minimum", "search"}
    assert 1e-3 < result["suggestion"] < 0.3  # a model this small on words: about 0.03
    points, runs = result["range_test"]["points"], result["search"]["points"]
    assert 20 < len(points) <= 40 and points[0]["learning_rate"] == pytest.approx(1e-5)
    assert result["steps"] == len(points) + len(runs) * result["search"]["num_steps"]
    assert len(result["fingerprint"]) == 64
    assert result["overrides"] == {"optimizer.learning_rate": result["suggestion"]}
    assert f"--config.optimizer.learning_rate={result['suggestion']:.2g} " in out
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_from_a_checkpoint_it_begins_at_the_runs_loss_and_leaves_the_run_as_it_was(lm, config, finished, tmp_path):
    before = files(finished)
    arguments = "--workdir", tmp_path, "--steps", 20, "--search", 0, "--json"
    fresh = json.loads(lm("find-lr", "--config", config, *arguments).out)
    resumed = json.loads(lm("find-lr", "--config", config, "--checkpoint", finished, *arguments).out)
    assert files(finished) == before
    first = [result["range_test"]["points"][0]["loss"] for result in (fresh, resumed)]
    assert first[1] < first[0] - 0.5
    assert (fresh["rule"], fresh["search"]) == ("steepest", None)


@pytest.mark.slow
def test_under_muon_the_suggestion_sets_adams_rate_too_and_vmap_needs_one_device(lm, config, tmp_path):
    muon = "--config.optimizer.name=muon", "--config.optimizer.adam_learning_rate=1e-2"  # half the config's rate
    arguments = "--config", config, *muon, "--workdir", tmp_path, "--steps", 20, "--search", 2, "--search-steps", 2
    overrides = json.loads(lm("find-lr", *arguments, "--json").out)["overrides"]
    assert overrides["optimizer.adam_learning_rate"] == pytest.approx(overrides["optimizer.learning_rate"] / 2)
    assert "there are 8" in lm("find-lr", *arguments, "--vmap").refusal(2)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(lm, config, finished, tmp_path):
    arguments = "--checkpoint", finished, "--config.model.d_model=16", "--workdir", tmp_path
    assert "does not fit this config" in lm("find-lr", "--config", config, *arguments).refusal(2)


def test_ctrl_c_is_one_line_and_leaves_nothing(lm, config, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.commands.find_lr.open_training", interrupted)
    assert lm("find-lr", "--config", config, "--workdir", tmp_path / "out").refusal(130) == "lm: interrupted.\n"
    assert files(tmp_path) == {}
