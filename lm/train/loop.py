"""The training loop: one flat function that reads from top to bottom."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lm.checkpoint.store import Checkpoints
from lm.config import Config
from lm.data.prefetch import Prefetcher
from lm.errors import ConfigError, LmError, Preempted
from lm.model.flops import train_flops_per_token
from lm.optim import hyperparameters
from lm.parallel.mesh import place_batch, replicated
from lm.storage import join
from lm.train.interrupts import Interrupts
from lm.train.loss_scale import FLOOR
from lm.train.metrics import EventSink, JsonlSink, combine
from lm.train.step import BuiltStep, TrainState

STATE_ITEMS = ("params", "frozen", "opt_state", "extra")


class Batches(Protocol):
    """What the loop needs of a loader: batches by step, and the identity of the data."""

    manifest_hash: str

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
    peak_flops: float | None = None,
    meta: Mapping[str, Any] | None = None,
) -> TrainState:
    """Train until `num_steps`, continuing what the run's folder holds.

    Where the state comes from, in this order:
      1. The newest readable checkpoint in `workdir/checkpoints`; damaged ones are passed over.
      2. The parameters of `initial_params()` (`config.init_from`), with a fresh optimizer.
      3. A fresh initialization from `config.seed`.
    On resume the data must be what it was (ConfigError otherwise), and the metrics after the
    restored step are cut, because those steps run again.

    Args:
      config: resolved, with `vocab_size`.
      built: `build_step(config, mesh)`.
      loader: training batches.
      workdir: the run's folder.
      console: shows records and notes.
      hooks: run after their steps, in order.
      interrupts: SIGTERM and Ctrl-C, already installed.
      peak_flops: of one chip, for the MFU; None: unknown.
      meta: stored in every checkpoint (fingerprint).

    Returns:
      The final state.

    Raises:
      Preempted: stopped by a signal after saving; the same command continues.
      LmError: the loss is not finite, or a file cannot be written.
    """
    num_steps, interrupts = config.optimizer.num_steps, interrupts or Interrupts()
    mesh, length = built.mesh, config.data.sequence_length
    micro = config.optimizer.accumulation_steps
    shape = (micro, config.data.batch_size // micro, length)
    checkpoints = Checkpoints(join(workdir, "checkpoints"), keep=config.checkpoint.keep, warn=console.note)

    # 1. The state: resumed, started from a checkpoint, or fresh.
    checkpoints.discard_unfinished()
    first = 0
    if checkpoints.steps():
        restored = checkpoints.restore({name: getattr(built.state, name) for name in STATE_ITEMS})
        first = restored.step
        if restored.data["manifest_hash"] != loader.manifest_hash:
            raise ConfigError(
                f"the data changed since this run began (manifest {restored.data['manifest_hash'][:12]} then, "
                f"{loader.manifest_hash[:12]} now); restore the data or choose another --workdir."
            )
        step = jax.device_put(np.int32(first), replicated(mesh))
        state = TrainState(step=step, **restored.items)
        console.note(f"resumed at step {first} of {num_steps}")
    else:
        state = built.init() if initial_params is None else built.init(initial_params())
    jsonl = JsonlSink(workdir)
    jsonl.truncate_after(first if first else -1)
    events = [EventSink(workdir, first_step=first + 1)] if config.log.tensorboard else []
    records = combine([jsonl, *events])

    # 2. Batches and hyperparameters, built and placed in the background.
    def inputs(step: int):
        batch = place_batch(mesh, shape, lambda rows, columns: loader.batch(step, rows, columns))
        scalars = {name: np.float32(value) for name, value in hyperparameters(config.optimizer, step).items()}
        return batch, jax.device_put(scalars, replicated(mesh))

    # 3. Metrics, fetched one step late so that the devices never wait for the host.
    flops = train_flops_per_token(config.model, length) / jax.device_count()
    clock = _Clock()
    pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def write(record: Mapping[str, Any]) -> None:
        records.write(record)
        console.write(record)

    def report() -> None:
        nonlocal pending
        if pending is None:
            return
        (done, device_metrics), pending = pending, None
        metrics = {name: value.item() for name, value in jax.device_get(device_metrics).items()}
        measured = {name: value for name, value in metrics.items() if name not in ("tokens", "bytes")}
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]
        # Before any save: the parameters of this step may be no numbers either. An fp16 step was skipped
        # instead, and the next one has half the loss scale, unless that is at its floor.
        if broken and metrics.get("loss_scale", FLOOR) <= FLOOR:
            write({"step": done, **measured})
            at = f"step {done}" + (", with the loss scale at its floor" if "loss_scale" in metrics else "")
            raise LmError(
                f"{broken[0]} is {metrics[broken[0]]} at {at}. Start again in another --workdir with a lower "
                "config.optimizer.learning_rate or clip_norm."
            )
        if done % config.log.every_steps and done not in (first + 1, num_steps):
            return
        rate, seconds = clock.rate(loader.rows_consumed(done) * length)
        write(
            {
                "step": done,
                **measured,
                "learning_rate": hyperparameters(config.optimizer, done - 1)["learning_rate"],
                "tokens": loader.rows_consumed(done) * length,
                "epoch": round(loader.epoch(done), 4),
                "tokens_per_second": rate,
                "mfu": None if rate is None or peak_flops is None else rate * flops / peak_flops,
                "seconds": seconds,
            }
        )

    def save(step: int) -> None:
        report()
        records.flush()
        checkpoints.save(
            step,
            {name: getattr(state, name) for name in STATE_ITEMS},
            data={"rows_consumed": loader.rows_consumed(step), "manifest_hash": loader.manifest_hash},
            meta={"step": step, **(meta or {})},
        )

    # 4. The loop.
    profiler = _Profiler(join(workdir, "profile"), config.log.profile)
    try:
        with interrupts.deferred(), Prefetcher(inputs, first, num_steps, config.data.prefetch) as batches:
            for step, (batch, hparams) in batches:
                profiler.before(step)
                with jax.transfer_guard("disallow"):
                    state, metrics = built.step(state, batch, hparams)
                report()
                done = step + 1
                pending = done, metrics
                profiler.after(step, metrics)
                last, stop = done == num_steps, interrupts.requested  # read once: a signal may come at any time
                for hook in hooks:
                    if last or (done % hook.every == 0 and not stop):
                        report()
                        with clock.paused():
                            try:
                                for record in hook.run(done, built.evaluation_params(state)):
                                    write(record)
                            except Preempted:  # a second Ctrl-C
                                raise
                            except Exception:
                                save(done)  # a hook that fails must not lose the run
                                raise
                # After the hooks, so that a checkpoint's step has all its records on disk before it.
                if last or done % config.checkpoint.every_steps == 0 or stop:
                    save(done)
                if stop and not last:
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


class _Clock:
    """Tokens per second since the last record; the first interval, which compiles, has no rate."""

    def __init__(self):
        self._start = self._last_time = time.monotonic()
        self._last_tokens: int | None = None
        self._pause = 0.0

    def rate(self, tokens: int) -> tuple[float | None, float]:
        """Return (tokens per second since the last call, or None at the first; seconds since the start)."""
        now = time.monotonic()
        elapsed = now - self._last_time - self._pause
        rate = None if self._last_tokens is None or elapsed <= 0 else (tokens - self._last_tokens) / elapsed
        self._last_time, self._last_tokens, self._pause = now, tokens, 0.0
        return rate, now - self._start

    def paused(self) -> "_Pause":
        """A block whose time does not count: evaluation and samples."""
        return _Pause(self)

    def add_pause(self, seconds: float) -> None:
        self._pause += seconds


class _Pause:
    def __init__(self, clock: _Clock):
        self._clock = clock

    def __enter__(self):
        self._start = time.monotonic()

    def __exit__(self, *_):
        self._clock.add_pause(time.monotonic() - self._start)


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
