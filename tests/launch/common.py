"""Jobs whose verb is a stand-in for `lm`: a script that each test writes."""

import pathlib

from lm.launch.job import Job, named
from lm.launch.records import Records, open_folder

STAND_IN = """
import os, pathlib, signal, sys, time

workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
starts = workdir / "starts"
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write("start\\n")


def save(step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)

{body}
"""


def job(tmp_path: pathlib.Path, body: str, **fields) -> Job:
    """Return a job, submitted once, whose `lm train` runs `body`: it knows workdir, number (of earlier starts), save(step)."""
    package = tmp_path / "stand_in" / "lm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(STAND_IN.format(body=body))
    workdir = tmp_path / "run"
    workdir.mkdir()
    made = named(
        Job(
            arguments=("train", "--config", "x.py", "--workdir", str(workdir)),
            target="local",
            topology="cpu:1",
            workdir=str(workdir),
            environment={"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"},
            **fields,
        )
    )
    open_folder(made.folder)
    store = Records(made.folder)
    assert store.claim(made)
    store.submit(target="local")
    return made
