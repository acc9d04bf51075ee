"""A run on an S3-compatible server: trained, continued, inspected and evaluated as on a disk.

TensorStore and s3fs both go to moto's server, which $AWS_ENDPOINT_URL names.
"""

import json
import socket

import pytest

from tests.commands.runs import finish, start, write_config, write_text

pytestmark = [pytest.mark.peer, pytest.mark.slow]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    return write_config(folder / "tiny_words.py", write_text(folder / "words.txt"), 12)


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # the next module's client would be one of this server


@pytest.fixture(scope="module")
def store(endpoint):
    """Return the environment of a process that uses the server, which has one bucket."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(proxies={}),
    )
    client.create_bucket(Bucket="bucket")
    return environment(endpoint), client


def environment(endpoint: str, **more: str) -> dict[str, str]:
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "*", **more}


def lm(env, *arguments) -> tuple[int, str, str]:
    return finish(start(*arguments, **env))


def result(env, *arguments):
    code, out, err = lm(env, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def runs(config, store, tmp_path_factory):
    """The same run on a disk and on the store."""
    folders = str(tmp_path_factory.mktemp("disk") / "run"), "s3://bucket/runs/run"
    for workdir in folders:
        code, _, err = lm(store[0], "train", f"--config={config}", f"--workdir={workdir}")
        assert code == 0, err
    return folders


def same_content(env, runs) -> None:
    """Assert that `lm inspect` and `lm eval` say the same of both."""
    local, remote = (result(env, "inspect", path, "--items") for path in runs)
    assert local.pop("checkpoint") != remote.pop("checkpoint")
    assert local == remote
    local, remote = (result(env, "eval", "--checkpoint", path) for path in runs)
    assert local["loss"] == remote["loss"] and local["step"] == remote["step"] == 12


def test_train_inspect_and_evaluate_give_what_they_give_on_a_disk(store, runs):
    env, client = store
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket", Prefix="runs/run/")["Contents"]]
    assert {"runs/run/checkpoints/12/commit_success.txt", "runs/run/config.json"} <= set(keys)
    assert not any("tmp" in key for key in keys)
    same_content(env, runs)
    one = f"{runs[1]}/checkpoints/8"
    assert result(env, "inspect", one, "--diff", runs[0], "--diff-step=8")["params"]["identical"]


def test_a_checkpoint_without_its_last_file_is_none_and_the_run_continues_before_it(config, store, runs):
    env, client = store
    client.delete_object(Bucket="bucket", Key="runs/run/checkpoints/12/commit_success.txt")
    assert result(env, "inspect", runs[1])["steps"] == [8]
    code, _, err = lm(env, "train", f"--config={config}", f"--workdir={runs[1]}")
    assert code == 0 and "half-written" in err and "resumed at step 8" in err, err
    same_content(env, runs)


SWEEP = """
from lm.sweep.algebra import Sweep, sweep


def get_sweep():
    rates = sweep("optimizer.learning_rate", [1e-2, 2e-2])
    return Sweep(config={!r}, variants=rates, baseline=rates[0].name, seeds=(0,), base={{"optimizer.num_steps": 6}})
"""


def test_shards_that_are_built_on_the_store_train_as_those_on_a_disk(config, store, tmp_path):
    env, client = store
    final = []
    for out in (str(tmp_path / "shards"), "s3://bucket/shards"):
        assert lm(env, "data", "build", f"--config={config}", "--out", out)[0] == 0
        shards = ("--config.data.source=shards", f"--config.data.path={out}")
        workdir = str(tmp_path / f"run{len(final)}")
        final.append(
            result(env, "train", f"--config={config}", f"--workdir={workdir}", "--json", *shards)["train_loss"]
        )
    assert final[0] == final[1]
    # What the store holds is the cache's now: a second run copies nothing.
    client.delete_object(Bucket="bucket", Key="shards/tokenizer.tiktoken")
    again = (f"--config={config}", f"--workdir={tmp_path / 'again'}", "--json", *shards)
    assert result(env, "train", *again)["train_loss"] == final[0]


def test_two_workers_share_a_sweep_on_the_store_and_it_gives_what_it_gives_on_a_disk(config, store, tmp_path):
    env, client = store
    (tmp_path / "rates.py").write_text(SWEEP.format(str(config)))
    command = ("sweep", "--config", tmp_path / "rates.py", "--json", "--workdir")
    local = result(env, *command[:-2], "--workdir", tmp_path / "sweep")
    workers = [start(*command, "s3://bucket/sweep", **env) for _ in range(2)]
    ends = [finish(worker) for worker in workers]
    assert [code for code, *_ in ends] == [0, 0], ends
    assert sum(err.count("bits per byte after") for *_, err in ends) == 2, ends
    remote = json.loads(ends[0][1])
    values = [{row["variant"]: row["mean"] for row in found["variants"]} for found in (local, remote)]
    assert values[0] == values[1] and len(values[0]) == 2
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket", Prefix="sweep/")["Contents"]]
    assert {"sweep/ledger.jsonl", "sweep/report.html", "sweep/sweep.json"} <= set(keys)


def refused(done, code: int) -> str:
    assert done[0] == code and done[1] == "", done
    lines = [line for line in done[2].splitlines() if line.startswith("lm: ")]
    assert len(lines) == 1 and "Traceback" not in done[2], done[2]
    return lines[0]


def test_a_bucket_that_is_not_there_is_one_line_and_is_not_made(config, store):
    env, client = store
    assert "no run in" in refused(lm(env, "inspect", "s3://nowhere/run"), 2)
    line = refused(lm(env, "train", f"--config={config}", "--workdir=s3://nowhere/run"), 1)
    assert "s3://nowhere/run" in line and "bucket does not exist" in line
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["bucket"]


def test_a_server_that_does_not_answer_is_one_line(config):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        env = environment(f"http://127.0.0.1:{unused.getsockname()[1]}")
        for verb in (["inspect", "s3://bucket/run"], ["eval", "--checkpoint", "s3://bucket/run"]):
            assert "Could not connect" in refused(lm(env, *verb), 1)


def test_without_credentials_it_is_one_line(endpoint, store, tmp_path):
    env = environment(
        endpoint, AWS_CONFIG_FILE=str(tmp_path / "none"), AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "no")
    )
    env = {name: value for name, value in env.items() if not name.startswith(("AWS_ACCESS", "AWS_SECRET"))}
    assert "credentials" in refused(lm(env, "inspect", "s3://bucket/run"), 1)
