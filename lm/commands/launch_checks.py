"""What is looked at before a job is submitted: everything that would make it fail later, all at once."""

import argparse
import contextlib
import glob
import importlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

from lm.capabilities import Capabilities
from lm.commands import common
from lm.commands.data_build import corpus_config
from lm.commands.verbs import VERBS as ALL
from lm.commands.verbs import split_overrides
from lm.config import Config
from lm.errors import LmError, UsageError, did_you_mean
from lm.launch import code
from lm.launch.accelerators import HERE, Accelerator
from lm.launch.job import Job, option, secrets_in
from lm.resolve import resolve, with_vocabulary
from lm.storage import exists, is_remote, make_folder

VERBS = ("train", "eval", "sweep", "data", "tokenizer", "generate", "export", "find-lr", "coord-check", "plan")
ON_OTHER_MACHINES = ("tpu-vm", "gke", "xpk", "sky")  # targets that share no disk with this one


def problems_of(job: Job, root: str | None, render: Callable[[Job], Any] | None) -> tuple[list[str], tuple[str, ...]]:
    """Return everything that is wrong with a job, a line each, and the extras that its configs need; nothing is created.

    Args:
      job: named.
      root: of the repository that holds the code; None: this target runs the code as it lies here.
      render: the target's renderer, which knows what it cannot serve; None: there is no such target.
    """
    found: list[str] = []
    needs: set[str] = set()

    def check(what: Callable[[], None]) -> None:
        try:
            what()
        except LmError as error:
            found.append(str(error))

    accelerator: Accelerator | None = None
    try:
        accelerator = job.accelerator
    except LmError as error:
        found.append(str(error))
    else:
        if render is not None:
            check(lambda: render(job))
    check(lambda: _check_workdir(job))
    if job.target not in ("gke", "xpk") and (names := secrets_in(job)):  # whose renderers know a better way
        found.append(
            f"--env {', '.join(names)}: a secret would stand in the job's records, for all who read the workdir; set it in "
            "the hosts' own environment."
        )
    if root is not None:
        check(lambda: _check_commit(root))
    options: argparse.Namespace | None = None
    try:
        options = _parsed(job)
    except LmError as error:
        found.append(str(error))
    if options is not None:
        for name, config in _configs(job, options, accelerator, found):
            needs |= _extras(config)
            for look in (_check_slices, _check_memory, _check_data, _check_tokenizer):
                try:
                    look(job, config, accelerator)
                except LmError as error:
                    found.append(f"{name}{error}")
        if job.verb == "data" and options.action == "build":
            check(lambda: needs.update(_corpus_extras(options)))
        if checkpoint := option(job.arguments, "--checkpoint"):
            check(lambda: _check_checkpoint(job, checkpoint))
    return list(dict.fromkeys(found)), tuple(sorted(needs))


def _extras(config: Config) -> set[str]:
    """Return the project's extras that a config's hosts need beside their accelerator's and the store's."""
    needs = {"data"} if config.data.source in ("huggingface", "parquet") else set()
    return needs | {"log"} if config.log.wandb else needs


def _corpus_extras(options: argparse.Namespace) -> set[str]:
    """Return the extras that building a corpus needs; its config is read, so that what is wrong in it is said here."""
    if corpus_config(options) is None:
        return set()
    return {"data"} | ({"scale-out"} if options.executor == "ray" else set())


def _parsed(job: Job) -> argparse.Namespace:
    """Return the verb's options, as its own parser reads them."""
    if job.verb not in VERBS:
        known = f" (`lm {job.verb}` runs here alone)" if job.verb in ALL else ""
        raise UsageError(
            f'"{job.verb}" is not a verb that can be launched{known}.{did_you_mean(job.verb, VERBS)} Verbs: '
            f"{', '.join(VERBS)}."
        )
    rest, overrides = split_overrides(list(job.arguments[1:]))
    verb = importlib.import_module(f"lm.commands.{job.verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"lm {job.verb}")
    verb.add_arguments(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            options = parser.parse_args(rest)
    except SystemExit as error:
        lines = said.getvalue().strip().splitlines() or [f"lm {job.verb} --help is nothing to launch"]
        raise UsageError(lines[-1]) from error
    options.overrides = overrides
    return options


def _check_workdir(job: Job) -> None:
    if not job.workdir:
        raise UsageError("--workdir DIR is needed: the job's records are kept there.")
    if not is_remote(job.workdir):
        if _is_unseen(job, job.workdir):
            raise UsageError(
                f"--workdir {job.workdir}: the hosts of {job.target} cannot see this machine's disk; expected gs:// or s3:// "
                "(or add --shared-disk if they have it mounted)."
            )
        folder = os.path.abspath(job.workdir)
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        if not os.access(folder, os.W_OK):
            raise UsageError(f"--workdir {job.workdir}: you may not write in {folder}.")
        return
    accelerator = job.accelerator
    if job.workdir.startswith("s3://") and job.verb == "train" and accelerator.copies * accelerator.hosts > 1:
        raise UsageError(
            f"--workdir {job.workdir}: several hosts cannot save together on s3://; use gs:// or a shared disk."
        )
    if not job.workdir.startswith(("gs://", "s3://")):
        raise UsageError(f"--workdir {job.workdir}: expected a local folder, gs:// or s3://.")
    make_folder(job.workdir)  # writes a probe and removes it


def _is_unseen(job: Job, path: str) -> bool:
    """Return whether a path is on this machine's disk, which the job's hosts do not see."""
    return job.target in ON_OTHER_MACHINES and not job.shared_disk and not is_remote(path)


def _check_commit(root: str) -> None:
    changed = code.uncommitted(root)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UsageError(
            f"the working tree differs from its commit ({', '.join(changed[:3])}{more}); what runs must be a commit: "
            "commit or stash the changes."
        )


def _configs(
    job: Job, options: argparse.Namespace, accelerator: Accelerator | None, found: list[str]
) -> Iterator[tuple[str, Config]]:
    """Yield the configs that the job trains, resolved for its hardware; what cannot be resolved is found."""
    if job.verb not in ("train", "sweep", "find-lr") or not options.config:
        return
    try:
        named = list(_unresolved(job, options))
    except LmError as error:
        found.append(str(error))
        return
    for name, config_dict in named:
        try:
            if accelerator is None or accelerator.family == HERE:
                yield name, common.resolve_anywhere(config_dict)
                continue
            # A sweep's hosts train each for itself.
            devices = accelerator.devices_per_host if job.is_sweep else accelerator.devices
            capabilities = Capabilities(platform=accelerator.platform, device_kind=accelerator.device_kind)
            yield name, resolve(config_dict, devices=devices, capabilities=capabilities)
        except LmError as error:
            found.append(f"{name}{error}")


def _unresolved(job: Job, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if job.verb != "sweep":
        yield "", common.load_config(options.config, options.overrides)
        return
    from lm.commands import sweep_processes
    from lm.sweep.plan import with_overrides

    kind = "get_search" if options.search else "get_sweep"
    sweep = common.call_in_file(options.config, kind, like="experiments/sweeps/swiglu_vs_gelu.py")
    config_dict = sweep_processes.base_config(options, sweep)
    for variant in [] if options.search else sweep.variants:
        from ml_collections import ConfigDict

        yield f"variant {variant.name}: ", ConfigDict(with_overrides(config_dict.to_dict(), variant.overrides))
    if options.search:
        yield "", config_dict


def _check_slices(job: Job, config: Config, accelerator: Accelerator | None) -> None:
    if accelerator and accelerator.tpu and not job.is_sweep and config.parallel.slices != accelerator.copies:
        raise UsageError(
            f"config.parallel.slices={config.parallel.slices}, but --topology {accelerator.name} has "
            f"{accelerator.copies}: add --config.parallel.slices={accelerator.copies}."
        )


def _check_memory(job: Job, config: Config, accelerator: Accelerator | None) -> None:
    if accelerator is None or accelerator.family == HERE:
        return
    from lm.plan.gate import check_fits

    if config.model.vocab_size is None:
        try:
            config = with_vocabulary(config, common.tokenizer_vocabulary(config))
        except LmError:  # `_check_tokenizer` says so
            return
    check_fits(config, Capabilities(platform=accelerator.platform, device_kind=accelerator.device_kind))


def _check_data(job: Job, config: Config, accelerator: Accelerator | None) -> None:
    path = config.data.path
    if path is None or config.data.source in ("download", "huggingface") or ":" in config.data.source:
        return
    is_far = job.target in ON_OTHER_MACHINES and not job.shared_disk
    if is_far and (config.data.source != "shards" or not is_remote(path)):
        raise UsageError(
            f'config.data.source={config.data.source}, path="{path}": the hosts of {job.target} read token shards on gs:// '
            "or s3://. Build them there (lm data build --out gs://…), and set config.data.source=shards."
        )
    if config.data.source == "shards":
        from lm.data.dataset import read_manifest

        read_manifest(path)  # there, of this version, and its hash fits its content
    elif not glob.glob(path):
        raise UsageError(f'config.data.path="{path}": no such file or folder.')


def _check_tokenizer(job: Job, config: Config, accelerator: Accelerator | None) -> None:
    from lm.tokenizer import OFFICIAL

    name = config.data.tokenizer
    if name == "train" or name in OFFICIAL or config.data.source == "shards":
        return
    if not exists(name):
        raise UsageError(f'config.data.tokenizer="{name}": no such file.')
    if _is_unseen(job, name):
        raise UsageError(
            f'config.data.tokenizer="{name}" is on this machine; the hosts of {job.target} need it on gs:// or s3://.'
        )


def _check_checkpoint(job: Job, checkpoint: str) -> None:
    if _is_unseen(job, checkpoint):
        raise UsageError(
            f"--checkpoint {checkpoint} is on this machine; the hosts of {job.target} need it on gs:// or s3://."
        )
    if not exists(checkpoint):
        raise UsageError(f"--checkpoint {checkpoint}: no such folder.")
