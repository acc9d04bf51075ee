"""A run's folder: a new one, or one of the same config on the same data, and the same for all hosts."""

import hashlib
import json
import os
import time
from typing import Any

from lm.checkpoint.run_folder import read_run_info
from lm.config import Config, to_dict
from lm.errors import ConfigError, UsageError
from lm.storage import LineLog, exists, join, read_text, write_atomic

_SHARED_SECONDS = 60.0  # in which a network disk shows a file that another host has written


def run_info(config: Config, identity: str, dataset, config_file: str) -> dict[str, Any]:
    """Return what a run's `config.json` holds.

    Args:
      config: resolved, with `vocab_size`.
      identity: the run's fingerprint.
      dataset: opened.
      config_file: names the run.
    """
    import jax

    from lm.commands.environment import describe_environment
    from lm.model.flops import parameter_counts

    counts = {split: dataset.counts(split) for split in dataset.splits}
    tokenizer = dataset.tokenizer
    return {
        "config": to_dict(config),
        "fingerprint": identity,
        "config_folder": os.path.dirname(os.path.abspath(config_file)),
        "name": os.path.splitext(os.path.basename(config_file))[0],
        "num_parameters": parameter_counts(config.model)["total"],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {
            "manifest_hash": dataset.hash,
            "source": config.data.source,
            "tokenizer": f"{tokenizer.name} ({tokenizer.vocab_size} tokens)",
            "train_tokens": counts["train"]["tokens"],
            "train_bytes": counts["train"]["bytes"],
        },
        **describe_environment(),
    }


def claim_folder(workdir: str, config: Config, info: dict[str, Any], dataset) -> None:
    """Write `config.json` and the tokenizer, or check that the folder's run is this one."""
    from lm.checkpoint.layout import finished_steps
    from lm.tokenizer import save

    path = join(workdir, "config.json")
    # A start that failed before its first step leaves nothing to continue or to lose.
    begun = LineLog(join(workdir, "metrics.jsonl")).read() or finished_steps(join(workdir, "checkpoints"))
    if exists(path) and begun:
        there = read_run_info(workdir)
        if there.get("data", {}).get("manifest_hash") != info["data"]["manifest_hash"]:
            raise ConfigError(
                f'"{workdir}" holds a run on other data (manifest {there["data"]["manifest_hash"][:12]}, '
                f"now {info['data']['manifest_hash'][:12]}); restore the data or choose another --workdir."
            )
        if there["fingerprint"] != info["fingerprint"]:
            different = ", ".join(_differences(there["config"], info["config"])) or "config.init_from"
            raise ConfigError(
                f'"{workdir}" holds a run of another config ({different} differ); choose another --workdir.'
            )
    save(dataset.tokenizer, join(workdir, "tokenizer.tiktoken"))
    write_atomic(path, json.dumps(info, indent=2, default=str) + "\n")


def check_hosts_agree(info: dict[str, Any]) -> None:
    """Refuse hosts that would not run the same program on the same data.

    Raises:
      ConfigError: this process's config or data are not the first one's.
    """
    import jax

    from lm import hosts

    def shared(config: dict) -> dict:  # where a host keeps its data is its own affair
        own = ("path", "cache", "workers")
        return {**config, "data": {name: value for name, value in config["data"].items() if name not in own}}

    mine = {"config": shared(info["config"]), "manifest": info["data"]["manifest_hash"]}
    texts = hosts.gather(json.dumps(mine, sort_keys=True))
    first, here = json.loads(texts[0]), json.loads(texts[jax.process_index()])
    who = f"process {jax.process_index()}"
    if here["config"] != first["config"]:
        different = ", ".join(_differences(first["config"], here["config"]))
        raise ConfigError(f"{who} has another config than process 0 ({different} differ); give all hosts the same.")
    if here["manifest"] != first["manifest"]:
        raise ConfigError(
            f"{who} has other data than process 0 (manifest {here['manifest'][:12]}, {first['manifest'][:12]} there); "
            "copy the prepared data, or build it once with `lm data build` and use config.data.source=shards."
        )
    hosts.gather()


def check_folder_is_shared(workdir: str) -> None:
    """Refuse a folder that is not the same one on all hosts: each would save a part of the checkpoints.

    Raises:
      UsageError: this process does not see what the first one has just written.
    """
    import jax

    from lm import hosts

    def digest() -> str:
        path = join(workdir, "config.json")
        return hashlib.sha256(read_text(path).encode()).hexdigest() if exists(path) else ""

    first = hosts.gather(digest() if hosts.is_first() else "")[0]
    deadline = time.monotonic() + _SHARED_SECONDS
    while not hosts.is_first() and digest() != first:
        if time.monotonic() > deadline:
            raise UsageError(
                f"--workdir {workdir}: process {jax.process_index()} does not see what process 0 writes there; "
                "choose a folder on a disk that all hosts share, or gs://."
            )
        time.sleep(1)
    hosts.gather()


def _differences(old: dict, new: dict, prefix: str = "config") -> list[str]:
    out = []
    for name in new:
        a, b = old.get(name), new[name]
        if isinstance(b, dict) and isinstance(a, dict):
            out += _differences(a, b, f"{prefix}.{name}")
        elif json.dumps(a) != json.dumps(b):
            out.append(f"{prefix}.{name}")
    return out
