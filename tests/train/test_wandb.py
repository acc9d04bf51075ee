"""Weights & Biases without its server: what lands in the offline files, and what happens without a login."""

import json
import os
import struct
import zlib

import pytest

from lm.train.metrics import read_metrics
from tests.commands.runs import finish, start, write_config, write_text

pytestmark = pytest.mark.peer


def offline_records(path):
    """Yield the protobuf records of a `.wandb` file: LevelDB's log format with CRC-32, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:  # too little for a header: the block's end is filled up
            at += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, at)
        body = content[at + 7 : at + 7 + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum
        at += 7 + length
        first, last = kind in (1, 2), kind in (1, 4)  # full, first, middle, last
        parts = body if first else parts + body
        if last:
            yield wandb_internal_pb2.Record.FromString(parts)


def offline_runs(workdir):
    """Return (run message, {step: values}) of each offline file, oldest first."""
    runs = []
    for path in sorted((workdir / "wandb").glob("offline-run-*/*.wandb")):
        run, history = None, {}
        for record in offline_records(path):
            if record.HasField("run"):
                run = record.run
            elif record.HasField("history"):
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                assert row["_step"] not in history
                history[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
        runs.append((run, history))
    return runs


def expected(workdir):
    """Return {step: values} of metrics.jsonl under W&B's names."""
    rows = {}
    for record in read_metrics(str(workdir)):
        group = record.get("split", "train")
        values = {f"{group}/{name}": value for name, value in record.items() if isinstance(value, int | float)}
        rows.setdefault(record["step"], {}).update({n: v for n, v in values.items() if not n.endswith("/step")})
    return rows


def test_an_offline_run_holds_what_metrics_jsonl_holds_and_goes_on_after_a_stop(tmp_path):
    workdir = tmp_path / "run"
    config = write_config(tmp_path / "tiny_words.py", write_text(tmp_path / "words.txt"), 24)

    def train(*arguments):
        command = ("train", f"--config={config}", f"--workdir={workdir}", "--config.log.wandb=lm-tests", *arguments)
        return finish(start(*command, WANDB_MODE="offline"))

    # A stop that comes with step 12: a sink of one's own asks for it.
    (tmp_path / "stops.py").write_text(
        "import os, signal\n"
        "class At12:\n"
        "    def __init__(self, config, workdir, first_step): pass\n"
        "    def write(self, record):\n"
        "        if record['step'] == 12: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    def flush(self): pass\n"
        "    def close(self): pass\n"
    )
    code, _, err = train("--config.log.sinks=('stops:At12',)")
    assert code == 42, err
    code, _, err = train()
    assert code == 0, err
    assert err.count("Weights & Biases: offline, in ") == 1 and "WARNING" not in err

    (first, before), (second, after) = offline_runs(workdir)
    assert first.run_id == second.run_id and first.project == "lm-tests" and first.display_name == "run"
    uploaded = {update.key: json.loads(update.value_json) for update in first.config.update}
    info = json.loads((workdir / "config.json").read_text())
    assert uploaded["fingerprint"] == info["fingerprint"]
    assert uploaded["optimizer"] == info["config"]["optimizer"]
    assert max(before) + 1 == min(after)  # no step twice
    assert before | after == expected(workdir)
    assert sorted(before | after) == list(range(1, 25))


def test_without_a_login_the_run_goes_on_with_one_warning(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, folder in (("HOME", "home"), ("WANDB_CONFIG_DIR", "settings"), ("NETRC", "netrc")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    code = (
        "import sys\n"
        "from lm.config import Config, LogConfig\n"
        "from lm.train.metrics import open_sinks\n"
        "config = Config(log=LogConfig(wandb='p', tensorboard=False))\n"
        "sink = open_sinks(config, sys.argv[1], 1, 'f', lambda text: print(text, file=sys.stderr))\n"
        "sink.write({'step': 1, 'loss': 2.0})\n"
        "sink.close()\n"
    )
    code, _, err = finish(start(tmp_path, code=code))
    assert code == 0, err
    assert [line for line in err.splitlines() if "gets no records from here on" in line and "wandb login" in line]
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 2.0}]
