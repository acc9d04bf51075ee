"""Small runs that differ in the step's scalar inputs alone, trained in one program by `jax.vmap`.

A tiny model's step leaves most of a device idle: what takes the time is to start its many small operations, to build
and place its batch and to fetch its figures. K runs with the same seed read the same batches and start from the same
parameters, so one program does the K steps with one batch, K states and K sets of hyperparameters. Large models gain
nothing, and lose on a CPU, where the K states no longer fit its caches: `experiments/benchmarks/sweep_compilation.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import hosts
from lm.config import Config, OptimizerConfig
from lm.data.prefetch import Prefetcher
from lm.errors import Preempted
from lm.evaluate import LossEvaluator
from lm.model.flops import train_flops_per_token
from lm.parallel.mesh import place_batch, replicated
from lm.train.interrupts import Interrupts
from lm.train.loop import Batches, failure, train_record
from lm.train.metrics import Sink
from lm.train.step import INPUTS, BuiltStep, step_scalars
from lm.train.timeline import Rates, Timeline

MAX_RUNS = 16  # in one program
MAX_STEP_FLOPS = 1.5e8  # of one run; the benchmark says what is gained at which size


@dataclasses.dataclass
class Member:
    """One of the runs: its config, and where its records go."""

    config: Config
    sinks: Sequence[Sink]  # none: it is trained for the others' sake
    failure: str | None = None  # in one line, once it has failed


def pays(config: Config) -> bool:
    """Return whether runs of a resolved config, with its `vocab_size`, are faster together than in turn.

    The rule: a step of at most `MAX_STEP_FLOPS` model FLOPs, of a run that has nothing which only runs alone have:
    samples, tasks, sinks elsewhere, fp16's loss scale, a checkpoint to start from, several devices, a profile.
    """
    log, parallel = config.log, config.parallel
    alone = (log.sample_prompts, log.wandb, log.sinks, log.profile, config.eval.tasks, config.init_from)
    sizes = (parallel.data, parallel.fsdp, parallel.tensor, parallel.stage, parallel.context, parallel.expert)
    if any(alone) or config.precision.compute == "float16" or any(size > 1 for size in (*sizes, parallel.slices)):
        return False
    steps = (tokens * train_flops_per_token(config.model, length) for tokens, length in _step_sizes(config))
    return max(steps) <= MAX_STEP_FLOPS


def _step_sizes(config: Config) -> list[tuple[int, int]]:
    """Tokens of a step and per row, by stage."""
    return [(rows * length, length) for _, rows, length in config.data.schedule]


def shared_part(config: Config) -> Config:
    """Return a config with the step's inputs at their defaults: runs with the same one can be trained together."""
    defaults = {name: getattr(OptimizerConfig, name) for name in INPUTS if name != "num_steps"}
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **defaults))


def train_together(
    built: BuiltStep,
    members: Sequence[Member],
    loader: Batches,
    *,
    evaluator: LossEvaluator | None = None,
    validation: Any = None,
    interrupts: Interrupts | None = None,
    peak_flops: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Any:
    """Train runs in one program from the first step to the last, with the records that each would write alone.

    Nothing is saved: whoever is stopped starts again. A run whose loss or gradient is not finite is marked
    (`Member.failure`) and writes nothing more; the others do not feel it. Times in the records are a run's share, 1 / K
    of what passed, so that they compare with those of runs alone.

    Args:
      built: the step of any of the configs, on a mesh of one device.
      members: K runs, resolved, with the same `shared_part`.
      loader: training batches, of all.
      evaluator: scores the validation batches; None: no validation.
      validation: its batches, read anew each time.
      interrupts: SIGTERM and Ctrl-C, already installed.
      peak_flops: of the chip, for the MFU; None: unknown.
      progress: is told the steps done, and all.

    Returns:
      The final parameters to evaluate with, stacked on K.

    Raises:
      Preempted: stopped by a signal.
    """
    config, K, mesh, interrupts = members[0].config, len(members), built.mesh, interrupts or Interrupts()
    if mesh.size > 1 or any(shared_part(member.config) != shared_part(config) for member in members):
        raise ValueError("runs that are trained together differ in the step's inputs alone, on one device")
    num_steps, stages, micro = config.optimizer.num_steps, loader.stages, config.optimizer.accumulation_steps
    whole = replicated(mesh)
    stack = jax.jit(lambda tree: jax.tree.map(lambda a: jnp.stack([a] * K), tree), out_shardings=whole)
    state = stack(built.init(None, config.seed))
    step_of_all = jax.jit(jax.vmap(built.train_step, in_axes=(0, None, 0)), donate_argnums=0, out_shardings=whole)
    programs: dict[tuple[int, int], Callable] = {}

    def inputs(step: int):
        stage = stages.at(step)
        shape = (micro, stage.batch_size // micro, stage.sequence_length)
        batch = place_batch(mesh, shape, lambda rows, columns: loader.batch(step, rows, columns))
        scalars = [step_scalars(member.config, step) for member in members]
        stacked = {name: np.stack([own[name] for own in scalars]) for name in scalars[0]}
        return batch, hosts.replicate(mesh, stacked)

    lengths = {stage.sequence_length for stage in stages}
    flops_per_token = {length: train_flops_per_token(config.model, length) for length in lengths}
    timeline = Timeline()
    rates_of_all = Rates(timeline)
    pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def write(member: Member, record: Mapping[str, Any]) -> None:
        for sink in member.sinks:
            sink.write(record)

    def report() -> None:
        """Write the step before, one step late, so that the device never waits for the host."""
        nonlocal pending
        if pending is None:
            return
        (done, device_metrics), pending = pending, None
        metrics_K = {name: values.tolist() for name, values in jax.device_get(device_metrics).items()}
        is_regular, rates = done % config.log.every_steps == 0 or done in (1, num_steps), None
        if is_regular:
            flops = sum(n * flops_per_token[length] for length, n in stages.tokens_by_length(done).items())
            *rates, seconds = rates_of_all(K * stages.tokens(done), K * flops)
            rates = (*rates, seconds / K)
        for k, member in enumerate(members):
            metrics = {name: values[k] for name, values in metrics_K.items()}
            measured = {name: value for name, value in metrics.items() if name not in ("tokens", "bytes")}
            if member.failure is None and (problem := failure(metrics, done)):
                member.failure = problem
                write(member, {"step": done, **measured})
            elif member.failure is None and is_regular:
                write(member, train_record(member.config, loader, done, measured, rates, peak_flops))
        progress(done, num_steps)

    def evaluate(done: int) -> None:
        stride = config.eval.stride or config.data.sequence_length
        about = {"kind": "eval", "step": done, "split": "validation", "stride": stride}
        figures_K = evaluator.of_many(built.evaluation_params(state), validation)
        for member, figures in zip(members, figures_K, strict=True):
            if member.failure is None:
                write(member, about | figures)

    with interrupts.deferred(), Prefetcher(inputs, 0, num_steps, config.data.prefetch) as batches:
        for step, (batch, hparams) in timeline.steps(batches):
            shape = batch["inputs_BT"].shape
            if shape not in programs:
                report()
                with timeline.during("compile"):
                    programs[shape] = step_of_all.lower(state, batch, hparams).compile()
            with jax.transfer_guard("disallow"):
                state, metrics = programs[shape](state, batch, hparams)
            report()
            done = step + 1
            pending = done, metrics
            if evaluator is not None and (done == num_steps or done % config.eval.every_steps == 0):
                report()
                with timeline.during("evaluation"):
                    evaluate(done)
            if interrupts.requested and done < num_steps:
                raise Preempted(
                    f"stopped by {interrupts.requested} at step {done}; the same command starts them again."
                )
            if all(member.failure for member in members):
                break
        report()
    return built.evaluation_params(state)
