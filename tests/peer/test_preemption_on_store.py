"""A GKE that takes hosts away, with everything on an object store: an S3 server in this process."""

import json
import os
import subprocess
import sys

import pytest

from lm.__main__ import main
from lm.launch.records import jobs_in
from tests.commands.runs import write_text
from tests.launch.cloud import Disturber, cloud, config_on, wait_for
from tests.peer.test_object_store import endpoint, store

__all__ = ["cloud", "endpoint", "store"]
pytestmark = [pytest.mark.peer, pytest.mark.slow]

SHARDS = "s3://bucket/preemption/shards"
SWEEP = """
from lm.sweep.algebra import Sweep, seeds, sweep


def get_sweep():
    rates = sweep("optimizer.learning_rate", [1e-3, 3e-3, 1e-2])
    return Sweep(config="config.py", variants=rates, baseline="learning_rate=0.003", seeds=seeds(2))
"""


@pytest.fixture
def shards(cloud, store, monkeypatch, tmp_path):
    """Token shards on the store, a config that reads them in the repository, and the store's names in the environment."""
    environment, client = store
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "Contents" not in client.list_objects_v2(Bucket="bucket", Prefix="preemption/shards/manifest.json"):
        (tmp_path / "text.py").write_text(config_on(write_text(tmp_path / "words.txt")))
        assert main(["data", "build", "--config", str(tmp_path / "text.py"), "--out", SHARDS]) == 0
    cloud.commit(config_py=config_on(SHARDS, "shards"), rates_py=SWEEP)


def test_a_sweep_on_two_gke_hosts_has_every_run_once_and_equal(cloud, shards, store, tmp_path, capsys, monkeypatch):
    size = ["--config.optimizer.num_steps=600"]  # long enough for three disturbances
    local = [sys.executable, "-m", "lm", "sweep", "--config", "rates.py", "--workdir", str(tmp_path / "sweep"), *size]
    subprocess.run(local, check=True, capture_output=True, env={**os.environ, "XLA_FLAGS": cloud.flags(1)})
    workdir = "s3://bucket/preemption/sweep"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # the tests' own: a host has none
    launch = ["launch", "--target", "gke", "--topology", "2*v5e:2x2", "--install", "", "--grace-seconds", "20"]
    launch += ["--env", f"XLA_FLAGS={cloud.flags(1)}"]
    assert main([*launch, "--", "sweep", "--config", "rates.py", "--workdir", workdir, *size]) == 0
    (store_,) = jobs_in(workdir)
    job = store_.job()
    hosts = lambda: sorted(path.name for path in (cloud.folder / "hosts").glob("*"))  # noqa: E731
    wait_for(lambda: len(hosts()) == 2, 30, "two pods")

    def preempt(host):
        return lambda: cloud.tools.take_away(host, grace=20.0)

    Disturber(2, workdir, times=3).run(
        {
            "preempted": preempt(hosts()[0]),
            "lost": lambda: cloud.tools.take_away(hosts()[1]),
            "preempted again": preempt(hosts()[1]),
        }
    )
    results = {}
    for folder in (str(tmp_path / "sweep"), workdir):
        capsys.readouterr()
        assert (
            main(["sweep", "--config", "rates.py", "--workdir", folder, *size, "--json"]) == 0
        )  # nothing is left to do
        assert main(["report", folder, "--json"]) == 0
        from lm.sweep.results import read_sweep

        runs = read_sweep(folder).runs
        assert len(runs) == 6 and all(run.status == "done" for run in runs)
        results[folder] = {run.id: run.final("loss") for run in runs}
    assert results[workdir] == results[str(tmp_path / "sweep")]
    wait_for(lambda: not cloud.hosts_with_processes(), 60, "all processes to end")
    capsys.readouterr()
    assert main(["launch", "status", workdir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "done"
    wait_for(
        lambda: cloud.tools.read(cloud.folder / "jobsets" / f"{job.name}.json")["state"] == "Completed", 30, "JobSet"
    )
