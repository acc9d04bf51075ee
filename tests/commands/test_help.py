"""`lm --help` is quick and complete."""

import importlib.util

import pytest

from lm.__main__ import VERBS
from tests.commands.runs import REPOSITORY, finish, start

HEAVY = ("jax", "flax", "optax", "orbax", "numpy", "tiktoken", "rich", "matplotlib")


def test_help_lists_the_verbs_that_are_built_and_imports_nothing_heavy():
    code = f"""
import sys
from lm.__main__ import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = sorted({set(HEAVY)!r} & set(sys.modules))
assert not heavy, heavy
"""
    exit_code, out, err = finish(start(code=code))
    assert exit_code == 0 and err == "", err
    listed = [line.split()[0] for line in out.split("verbs (")[1].split("\n\n")[0].splitlines()[1:]]
    assert listed == list(VERBS)
    assert "example:" in out


def test_every_listed_verb_is_built_and_no_built_verb_is_missing():
    modules = {verb.replace("-", "_") for verb in VERBS}
    for module in modules:
        assert importlib.util.find_spec(f"lm.commands.{module}"), module
    helpers = {
        "__init__",
        "claiming",
        "cluster",
        "common",
        "environment",
        "opened",
        "startup",
        "supervisor",
        "training",
        "verbs",
    }
    built = {path.stem for path in (REPOSITORY / "lm" / "commands").glob("*.py")}
    parts = {stem for stem in built - modules if "_" in stem and stem.split("_")[0] in modules}  # eval_tasks
    assert built - helpers - parts == modules


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_has_an_example(lm, verb):
    done = lm(verb, "--help")
    assert done.code == 0 and done.err == ""
    assert "\nexample" in done.out and f"lm {verb} " in done.out.split("\nexample")[1]


ACTIONS = {"data": ("build", "card", "where", "download", "import", "export"), "tokenizer": ("train", "info")}


@pytest.mark.parametrize("action", [(verb, action) for verb, actions in ACTIONS.items() for action in actions])
def test_every_actions_help_has_an_example(lm, action):
    done = lm(*action, "--help")
    assert done.code == 0 and f"lm {' '.join(action)} " in done.out.split("example")[1]


def test_the_version_is_printed(lm):
    from lm import __version__

    assert lm("--version").out == f"lm {__version__}\n"
