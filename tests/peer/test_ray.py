"""A corpus built on a Ray cluster of two nodes, the shuffle of deduplication included."""

import pytest

from lm.__main__ import main
from lm.corpus.on_ray import RayExecutor
from lm.corpus.stage import Stages
from lm.corpus.task import Task
from tests.corpus import tasks
from tests.corpus.small_corpus import write_corpus
from tests.corpus.test_build import card_of, contents

pytestmark = [pytest.mark.peer, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, both on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def test_on_two_ray_nodes_a_corpus_is_the_same_bytes_as_on_local_processes(cluster, tmp_path):
    config = write_corpus(tmp_path / "raw")
    build = ["data", "build", "--config", str(config), "--json", "--out"]
    assert main([*build, str(tmp_path / "local"), "--workers", "2"]) == 0
    assert main([*build, str(tmp_path / "ray"), "--executor", "ray", "--ray-address", cluster.address]) == 0
    ours, theirs = contents(tmp_path / "ray"), contents(tmp_path / "local")
    same = {name for name in theirs if not name.endswith(".json") or name == "manifest.json"}
    assert {name: ours.get(name) for name in same} == {name: theirs[name] for name in same}
    assert card_of(tmp_path / "ray") == card_of(tmp_path / "local")


def test_both_nodes_work_and_failures_are_named(cluster, tmp_path):
    executor = RayExecutor([str(tmp_path)], cluster.address)
    try:
        some = [Task(str(tmp_path / f"{i}"), tasks.where, {}) for i in range(8)]
        assert len({stats["node"] for stats in Stages(executor).run("where", some)}) == 2
        ((_, failure),) = executor.run([Task(str(tmp_path / "x"), tasks.refuse, {})], lambda *_: None)
        assert failure.reason == "the file is damaged."
    finally:
        executor.close()


def test_no_cluster_at_the_address_is_one_line(tmp_path, capsys):
    config = write_corpus(tmp_path / "raw")
    build = ["data", "build", "--config", str(config), "--out", str(tmp_path / "out")]
    assert main([*build, "--executor", "ray", "--ray-address", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert "127.0.0.1:1" in error and "ray start --head" in error and "Traceback" not in error
