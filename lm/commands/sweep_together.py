"""The small runs of a sweep's job that are trained in one program (`lm.sweep.together`)."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm.commands import common, training
from lm.commands.claiming import claim_folder, run_info
from lm.config import Config
from lm.errors import LmError, Preempted
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import exists, join, locked, make_folder
from lm.sweep.ledger import Ledger
from lm.sweep.plan import Run


def attempt(
    folder: str, run_ids: Sequence[str], plan: dict[str, Any], ledger: Ledger, interrupts, shared: training.Shared
) -> Iterator[tuple[Run, dict[str, Any] | None]]:
    """Train those runs of a job that are faster together; gives each with its result, which is to be recorded at once.

    None instead of a result: another worker trains the run together with others.

    What is trained together is the same however much of it is already done: figures depend on it in their last bits,
    and a sweep that was killed must end with the ledger of one that was not. Runs that could not be trained in this
    way are left to be trained alone.

    Args:
      folder: of the sweep.
      run_ids: the job's, of one group and seed.
      plan, ledger: of the sweep.
      interrupts: `lm.train.interrupts.Interrupts`, installed.
      shared: with the other runs of this process.

    Raises:
      Preempted: stopped by a signal; these runs start again.
    """
    from lm.commands.sweep_worker import result_of

    for runs, configs in _sets(folder, run_ids, plan):
        with contextlib.ExitStack() as claims:
            mine: set[str] = set()
            for run in (run for run in runs if run.id not in ledger.finished()):
                if claims.enter_context(ledger.claimed(run.id)):
                    mine.add(run.id)
                elif not mine:  # whoever has the first of them takes them all
                    break
            if not mine:
                yield from ((run, None) for run in runs)
                continue
            start, progress = time.monotonic(), common.progress_line(f"{len(runs)} runs, seed {runs[0].seed}", "steps")
            workdirs = [join(folder, "runs", run.id) if run.id in mine else None for run in runs]
            try:
                failures = train(
                    configs,
                    workdirs,
                    config_file=plan["config_file"],
                    interrupts=interrupts,
                    shared=shared,
                    progress=progress,
                )
            except Preempted:
                raise
            except Exception as error:  # alone, each has its own failure
                common.note(f"{len(runs)} runs could not be trained together: {' '.join(str(error).split())[:300]}")
                continue
            seconds = (time.monotonic() - start) / len(runs)
            for run, config, workdir, failure in zip(runs, configs, workdirs, failures, strict=True):
                if workdir:
                    yield run, result_of(workdir, config, plan["metric"], failure, seconds, None)


def train(
    configs: Sequence[Config],
    workdirs: Sequence[str | None],
    *,
    config_file: str,
    interrupts,
    shared: training.Shared,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str | None]:
    """Train runs in one program, from their start; return why each failed, or None.

    Args:
      configs: resolved for the device that is here, with the same `lm.sweep.together.shared_part`.
      workdirs: their folders, without checkpoints; None: what that run does is not written anywhere.
      config_file, interrupts, shared: as of `lm.commands.training.run_training`.
      progress: is told the steps done, and all.

    Raises:
      Preempted: stopped by a signal; the runs start again.
      ConfigError, LmError: as `run_training`.
    """
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh
    from lm.sweep.together import Member, train_together
    from lm.train.metrics import open_sinks
    from lm.train.step import build_step

    with contextlib.ExitStack() as stack:
        for workdir in filter(None, workdirs):
            make_folder(workdir)
            stack.enter_context(locked(workdir))
        config, dataset, loader, validation = training.open_inputs(configs[0], common.note)
        members = []
        for own, workdir in zip(configs, workdirs, strict=True):
            own, sinks = with_vocabulary(own, dataset.vocab_size), []
            if workdir:
                identity = fingerprint(own, manifest_hash=dataset.hash, init_from=None)
                info = {**run_info(own, identity, dataset, config_file), "init_from": None}
                claim_folder(workdir, own, info, dataset)
                sinks = [open_sinks(own, workdir, 1, identity, common.note)]
                stack.callback(sinks[0].close)
            members.append(Member(own, sinks))
        built = shared.once("step", config, lambda: build_step(config, make_mesh(config.parallel)))
        train_together(
            built,
            members,
            loader,
            evaluator=training.evaluator_of(config, built, shared) if validation is not None else None,
            validation=validation,
            interrupts=interrupts,
            peak_flops=detect().peak_flops(config.precision.compute),
            progress=progress,
        )
        loader.check()
    return [member.failure for member in members]


def _sets(folder: str, run_ids: Sequence[str], plan: dict[str, Any]) -> Iterator[tuple[list[Run], list[Config]]]:
    """Yield the runs of the plan that are trained together with some of a job, and their resolved configs."""
    from ml_collections import ConfigDict

    from lm.sweep.together import MAX_RUNS, pays, shared_part

    job = next(run for run in plan["runs"] if run.id == run_ids[0])
    alike: dict[Config, list[tuple[Run, Config]]] = {}
    for run in plan["runs"]:
        if (run.group, run.seed) != (job.group, job.seed) or exists(join(folder, "runs", run.id, "checkpoints")):
            continue
        with contextlib.suppress(LmError):  # said when it is trained alone
            config = common.resolve_here(ConfigDict(dict(run.config), type_safe=False))
            if pays(with_vocabulary(config, common.tokenizer_vocabulary(config))):
                alike.setdefault(shared_part(config), []).append((run, config))
    for found in alike.values():
        for start in range(0, len(found), MAX_RUNS):
            runs, configs = map(list, zip(*found[start : start + MAX_RUNS], strict=True))
            if len(runs) > 1 and {run.id for run in runs} & set(run_ids):
                yield runs, configs
