"""The training loop: one flat function that reads from top to bottom."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lm import hosts
from lm.checkpoint.ranking import METRIC
from lm.checkpoint.store import Checkpoints
from lm.config import Config
from lm.data.prefetch import Prefetcher
from lm.data.stages import Stages
from lm.errors import ConfigError, LmError, Preempted
from lm.model.flops import train_flops_per_token
from lm.optim import hyperparameters
from lm.parallel.mesh import place_batch
from lm.storage import join
from lm.train.interrupts import Interrupts
from lm.train.loss_scale import FLOOR
from lm.train.metrics import combine, open_sinks
from lm.train.saving import Saving
from lm.train.step import BuiltStep, TrainState, step_scalars
from lm.train.timeline import Rates, Timeline

STATE_ITEMS = ("params", "frozen", "opt_state", "extra")
_FAILING_SECONDS = 10.0  # in which a hook that failed on one host must have failed on all


class Batches(Protocol):
    """What the loop needs of a loader: batches by step, their shapes, and the identity of the data."""

    manifest_hash: str
    mixture_hash: str | None
    stages: Stages

    def batch(self, step: int, rows: Any = None, columns: Any = None) -> Mapping[str, np.ndarray]: ...

    def rows_consumed(self, step: int) -> int: ...

    def epoch(self, step: int) -> float: ...


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something to do after every `every` steps, and after the last one.

    `run(step, params)` gets `BuiltStep.evaluation_params` and may return records for the metrics;
    evaluators and samplers come this way, handed in from above.
    """

    every: int
    run: Callable[[int, Any], Sequence[Mapping[str, Any]]]


def train(
    config: Config,
    built: BuiltStep,
    loader: Batches,
    workdir: str,
    *,
    console: Any,
    hooks: Sequence[Hook] = (),
    initial_params: Callable[[], Any] | None = None,
    interrupts: Interrupts | None = None,
    timeline: Timeline | None = None,
    peak_flops: float | None = None,
    meta: Mapping[str, Any] | None = None,
) -> TrainState:
    """Train until `num_steps`, continuing what the run's folder holds.

    Where the state comes from, in this order:
      1. The newest checkpoint in `workdir/checkpoints` that is whole; damaged ones are set aside.
      2. The parameters of `initial_params()` (`config.init_from`), with a fresh optimizer.
      3. A fresh initialization from `config.seed`.
    On resume the data must be what it was, read as far as it was (ConfigError otherwise), and the
    metrics after the restored step are cut, because those steps run again.

    The step is compiled when a batch shape comes for the first time: once, or once per stage of
    `config.data.stages`. Rates count neither that time nor the hooks'.

    On several hosts each runs this function; all take part in steps, hooks and checkpoints, the first one
    writes the records, and a signal to any of them stops all after the same step.

    Args:
      config: resolved, with `vocab_size`.
      built: `build_step(config, mesh)`.
      loader: training batches.
      workdir: the run's folder.
      console: shows records and notes.
      hooks: run after their steps, in order.
      interrupts: SIGTERM and Ctrl-C, already installed.
      timeline: is told what the time goes into.
      peak_flops: of one chip, for the MFU; None: unknown.
      meta: stored in every checkpoint (fingerprint).

    Returns:
      The final state.

    Raises:
      Preempted: stopped by a signal after saving; the same command continues.
      LmError: the loss is not finite, or a file cannot be written (a checkpoint: the last one, see `Saving`).
    """
    num_steps, interrupts, timeline = config.optimizer.num_steps, interrupts or Interrupts(), timeline or Timeline()
    mesh, stages, micro = built.mesh, loader.stages, config.optimizer.accumulation_steps
    checkpoints = Checkpoints(
        join(workdir, "checkpoints"),
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every,
        keep_best=config.checkpoint.keep_best,
        verify=config.checkpoint.verify,
        warn=console.note,
    )

    # 1. The state: resumed, started from a checkpoint, or fresh.
    checkpoints.start_writing()
    first = 0
    if checkpoints.shared_steps():
        restored = checkpoints.restore({name: getattr(built.state, name) for name in STATE_ITEMS}, set_aside=True)
        first = restored.step
        if restored.data["manifest_hash"] != loader.manifest_hash:
            raise ConfigError(
                f"the data changed since this run began (manifest {restored.data['manifest_hash'][:12]} then, "
                f"{loader.manifest_hash[:12]} now); restore the data or choose another --workdir."
            )
        if restored.data["rows_consumed"] != loader.rows_consumed(first):
            raise ConfigError(
                f"the batch schedule changed since this run began ({restored.data['rows_consumed']} rows read by step "
                f"{first} then, {loader.rows_consumed(first)} now); restore config.data.batch_size, sequence_length "
                "and stages, or choose another --workdir."
            )
        if restored.data.get("mixture") != loader.mixture_hash:
            raise ConfigError(
                "the mixture of domains changed since this run began; restore config.data.mixture and max_epochs, or "
                "choose another --workdir."
            )
        step = hosts.replicate(mesh, np.int32(first))
        state = TrainState(step=step, **restored.items)
        console.note(f"resumed at step {first} of {num_steps}")
    else:
        state = built.init(None if initial_params is None else initial_params(), config.seed)
    if hosts.is_first():
        records = open_sinks(config, workdir, first + 1, (meta or {}).get("fingerprint", ""), console.note)
    else:
        records = combine([])

    # 2. Batches and hyperparameters, built and placed in the background.
    def inputs(step: int):
        stage = stages.at(step)
        shape = (micro, stage.batch_size // micro, stage.sequence_length)
        batch = place_batch(mesh, shape, lambda rows, columns: loader.batch(step, rows, columns))
        return batch, hosts.replicate(mesh, step_scalars(config, step))

    # 3. Metrics, fetched one step late so that the devices never wait for the host.
    flops_per_token = {
        length: train_flops_per_token(config.model, length) / jax.device_count()
        for length in {stage.sequence_length for stage in stages}
    }
    rates = Rates(timeline)
    pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def write(record: Mapping[str, Any]) -> None:
        records.write(record)
        console.write(record)
        timeline.write_if_due()

    def report() -> None:
        nonlocal pending
        if pending is None:
            return
        (done, device_metrics), pending = pending, None
        metrics = {name: value.item() for name, value in jax.device_get(device_metrics).items()}
        timeline.step = done
        measured = {name: value for name, value in metrics.items() if name not in ("tokens", "bytes")}
        # Before any save: the parameters of this step may be no numbers either.
        if problem := failure(metrics, done):
            write({"step": done, **measured})
            raise LmError(problem)
        if done % config.log.every_steps and done not in (first + 1, num_steps):
            return
        flops = sum(n * flops_per_token[length] for length, n in stages.tokens_by_length(done).items())
        write(train_record(config, loader, done, measured, rates(stages.tokens(done), flops), peak_flops))

    saving = Saving(checkpoints, mesh, config.checkpoint.every_steps, console.note)
    validated: dict[int, float] = {}  # the newest step that was evaluated: its bits per byte

    def save(step: int, must_succeed: bool = False) -> None:
        report()
        with timeline.during("save"):
            timeline.write()  # a restart from this checkpoint loses what comes after
            records.flush()
            figure = {METRIC: validated[step]} if step in validated else {}
            saving(
                step,
                {name: getattr(state, name) for name in STATE_ITEMS},
                data={
                    "rows_consumed": loader.rows_consumed(step),
                    "manifest_hash": loader.manifest_hash,
                    **({"mixture": loader.mixture_hash} if loader.mixture_hash else {}),
                },
                meta={"step": step, **(meta or {}), **figure},
                must_succeed=must_succeed,
            )

    # 4. One program per batch shape, compiled when its first batch comes.
    def program(step: int, batch: Any, hparams: Any) -> Callable:
        shape = (stages.at(step).batch_size, stages.at(step).sequence_length)
        if shape not in built.programs:
            report()  # else the step before would wait for its record, and its time would hold the compilation
            if len(stages) > 1:
                console.note(f"step {step}: batch {shape[0]} x {shape[1]} tokens; compiling")
            with timeline.during("compile"):
                built.programs[shape] = built.step.lower(state, batch, hparams).compile()
        return built.programs[shape]

    # 5. The loop.
    profiler, agreement = _Profiler(join(workdir, "profile"), config.log.profile), hosts.Agreement(mesh)
    timeline.step = first
    timeline.write()
    try:
        with interrupts.deferred(), Prefetcher(inputs, first, num_steps, config.data.prefetch) as batches:
            for step, (batch, hparams) in timeline.steps(batches):
                profiler.before(step)
                run_step = program(step, batch, hparams)
                with jax.transfer_guard("disallow"):
                    state, metrics = run_step(state, batch, hparams)
                report()
                done = step + 1
                pending = done, metrics
                profiler.after(step, metrics)
                # Read once: a signal may come at any time.
                last, stop = done == num_steps, agreement(interrupts.requested, metrics)
                due = saving.is_due(done, metrics)
                for hook in hooks:
                    if last or (done % hook.every == 0 and not stop):
                        report()
                        with timeline.during("evaluation"):
                            try:
                                for record in hook.run(done, built.evaluation_params(state)):
                                    write(record)
                                    # A task may have the split's name.
                                    is_validation = (record.get("kind"), record.get("split")) == ("eval", "validation")
                                    if is_validation and math.isfinite(record.get(METRIC) or math.nan):
                                        validated = {done: record[METRIC]}
                            except Preempted:  # a second Ctrl-C
                                raise
                            except Exception as error:
                                # A hook that fails must not lose the run; to save takes all hosts.
                                if hosts.leave_together(_FAILING_SECONDS, error, 1):
                                    save(done)
                                raise
                # After the hooks, so that a checkpoint's step has all its records on disk before it.
                if last or due or stop:
                    save(done, must_succeed=bool(last or stop))
                if stop and not last:
                    timeline.enter("save")
                    checkpoints.close()
                    raise Preempted(f"stopped by {stop} at step {done}, saved; run the same command to continue.")
            checkpoints.close()
    except Preempted:
        raise
    except BaseException:
        with contextlib.suppress(LmError):  # a checkpoint under way is finished; the first error is the one to show
            checkpoints.close()
        raise
    finally:
        profiler.close()
        records.close()
    return state


def failure(metrics: Mapping[str, float], step: int) -> str | None:
    """Return what is wrong with a step's figures, in one line; None: nothing.

    An fp16 step that overflowed was skipped, and the next one has half the loss scale, unless that is at its floor.
    """
    broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]
    if not broken or metrics.get("loss_scale", FLOOR) > FLOOR:
        return None
    at = f"step {step}" + (", with the loss scale at its floor" if "loss_scale" in metrics else "")
    return (
        f"{broken[0]} is {metrics[broken[0]]} at {at}. Start again in another --workdir with a lower "
        "config.optimizer.learning_rate or clip_norm."
    )


def train_record(
    config: Config,
    loader: Batches,
    step: int,
    measured: Mapping[str, float],
    rates: tuple[float | None, float | None, float],
    peak_flops: float | None,
) -> dict[str, Any]:
    """Return the record of a step (`lm.train.metrics`).

    Args:
      config: of the run.
      loader: its training batches.
      step: that is done.
      measured: what it returned.
      rates: tokens and FLOPs per second, and seconds, as `lm.train.timeline.Rates` returns them.
      peak_flops: of one chip, or None.
    """
    tokens_per_second, flops_per_second, seconds = rates
    return {
        "step": step,
        **measured,
        "learning_rate": hyperparameters(config.optimizer, step - 1)["learning_rate"],
        "tokens": loader.stages.tokens(step),
        "epoch": round(loader.epoch(step), 4),
        "tokens_per_second": tokens_per_second,
        "mfu": None if flops_per_second is None or peak_flops is None else flops_per_second / peak_flops,
        "seconds": seconds,
    }


class _Profiler:
    """A `jax.profiler` trace of a range of steps, for TensorBoard or Perfetto."""

    def __init__(self, folder: str, steps: tuple[int, ...]):
        self._folder, self._steps, self._running = folder, steps, False

    def before(self, step: int) -> None:
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
