"""`lm` in this process, and one finished run that the tests share."""

import dataclasses
import pathlib
import shutil
import sys

import pytest

from lm.__main__ import main
from lm.commands.common import load_config
from lm.data.prepare import prepare
from lm.resolve import resolve
from tests.commands.runs import write_config, write_text

STEPS = 20


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refusal(self, code: int) -> str:
        """Return the one line of an orderly refusal."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("lm: ")
        return self.err


@pytest.fixture
def lm(capsys, monkeypatch):
    """Run `lm ARGUMENTS` in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "path", list(sys.path))  # configs put their folder there
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("corpus") / "words.txt")


@pytest.fixture(scope="session")
def config(corpus) -> pathlib.Path:
    """The shared config; its data is prepared, so that no test sees the lines about that."""
    path = write_config(corpus.parent / "tiny_words.py", corpus, STEPS)
    prepare(resolve(load_config(str(path))).data)
    return path


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory) -> pathlib.Path:
    """A finished run; tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    sampled = "--config.log.sample_prompts=('abc',)", "--config.log.sample_tokens=16"
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *sampled]) == 0
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> pathlib.Path:
    """A copy of the finished run, to be damaged."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def train(lm, config):
    """Run `lm train` with the shared config."""

    def run(workdir: object, *arguments: object) -> Done:
        return lm("train", f"--config={config}", f"--workdir={workdir}", *arguments)

    return run
