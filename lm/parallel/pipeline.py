"""The pipeline: each stage holds a part of the layers, micro-batches travel from stage to stage.

GPipe (Huang et al. 2019) with one part of the layers per stage; with `repeats` parts per stage the circular or
interleaved schedule (Narayanan et al. 2021). Micro-batches enter in rounds of as many as there are stages, and a round
passes all parts before the next one enters: what comes back to the first stage is used at once, nothing waits. All
forward ticks come before the backward ones: the backward pass is the transpose of the scan over ticks.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.parallel.pullback import Pullback


def bubble_fraction(stages: int, micro_batches: int, repeats: int = 1) -> float:
    """Return the fraction of the ticks in which a stage has nothing to do: (S - 1) / (M R + S - 1)."""
    return (stages - 1) / (micro_batches * repeats + stages - 1)


def make_pipeline(stages: int, *, micro_batches: int, repeats: int = 1) -> Callable:
    """Return `pipeline(blocks, params, x_BTD, side, key=None) -> (x_BTD, aux)`, to be called where `stage` is local.

    Args of the pipeline:
      blocks: `blocks(params, x_bTD, side, first_layer, key) -> (x_bTD, aux)` applies consecutive layers, as many as
        `params` holds, to one micro-batch. `first_layer` is its first layer's number in the model (a traced int32),
        `aux` a dict of f32 scalars. It closes over no traced arrays and brings its own `jax.checkpoint`; with
        `repeats` it uses `params` as they are outside of that (see `_apply_part`).
      params: leaves `[L / S, …]`: stage s of S holds the layers from s L / S on.
      x_BTD: this stage's M / S micro-batches, one after another; stage s keeps those from s M / S on.
      side: integers `[B, T]` that belong to the rows (tokens, positions, segment ids).
      key: a random key; micro-batch m gets `jax.random.fold_in(key, m)`. None: None.

    The results are x_BTD after all layers, and `aux` as `[M / S]` each, of the same micro-batches, summed over all
    layers.

    Every stage lays its micro-batches on a conveyor, which brings one per tick to the first stage; that puts a
    finished micro-batch in the place of the one that it takes, and the conveyor brings it home. Per tick a device
    sends two arrays `[b, T, D]`, one up to the next stage and one down the conveyor, in the forward pass and again in
    the backward pass. It holds M / S + 2 of them beside what `blocks` keeps. `side` is gathered. There are
    M R + S - 1 ticks.

    With R = `repeats`, part r of stage s is the layers from (r S + s) L / (R S) on. Each call sends the layers to
    where they are needed (R permutes of 1 / R of a leaf), its backward pass the gradients back.

    In the bubble a stage applies its layers to a micro-batch of its own and drops the result: zeros would do, but a
    norm's gradient may be infinite there.

    Raises:
      ValueError: one stage, no repeat, or micro-batches that are not a multiple of the stages; when called: rows or
        layers that do not divide.
    """
    schedule = _Schedule(stages, micro_batches, repeats)
    if stages < 2 or micro_batches < 1 or repeats < 1 or micro_batches % stages:
        raise ValueError(f"no pipeline of {stages} stages, {micro_batches} micro-batches, {repeats} repeats")

    def pipeline(blocks: Callable, params: Any, x_BTD: jax.Array, side: dict[str, jax.Array], key=None):
        layers = {leaf.shape[0] for leaf in jax.tree.leaves(params)}
        if any(count % repeats for count in layers):
            raise ValueError(f"{max(layers)} layers of a stage do not divide by {repeats} repeats")
        if x_BTD.shape[0] % schedule.rounds:
            raise ValueError(f"{x_BTD.shape[0]} rows do not divide by a stage's {schedule.rounds} micro-batches")
        side = jax.tree.map(lambda a_BT: jax.lax.all_gather(a_BT, "stage", axis=0, tiled=True), side)
        side_MbT = {name: a_BT.reshape(micro_batches, -1, *a_BT.shape[1:]) for name, a_BT in side.items()}
        own_KbTD, aux = _run(
            schedule, blocks, params, x_BTD.reshape(schedule.rounds, -1, *x_BTD.shape[1:]), side_MbT, key
        )
        return own_KbTD.reshape(x_BTD.shape), aux

    return pipeline


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """Who works on what, and when: stage s begins at tick s, and does at tick t what stage 0 did at t - s."""

    stages: int
    micro_batches: int
    repeats: int

    @property
    def rounds(self) -> int:
        """The micro-batches enter in so many rounds of S, one of each stage's."""
        return self.micro_batches // self.stages

    @property
    def period(self) -> int:
        """Ticks from one round to the next: each of its S micro-batches passes R parts of a stage."""
        return self.stages * self.repeats

    @property
    def ticks(self) -> int:
        """M R + S - 1: the last micro-batch passes `period` parts."""
        return self.rounds * self.period + self.stages - 1

    def micro_batch(self, number: jax.Array) -> jax.Array:
        """Return which micro-batch enters as the `number`-th: the stages' in turn."""
        return number % self.stages * self.rounds + number // self.stages


def _run(schedule: _Schedule, blocks: Callable, params: Any, own_KbTD, side_MbT, key):
    """Return this stage's finished micro-batches and their `aux`."""
    stages, repeats, period, rounds = schedule.stages, schedule.repeats, schedule.period, schedule.rounds
    stage = jax.lax.axis_index("stage")
    part_layers = jax.tree.leaves(params)[0].shape[0] // repeats
    if repeats > 1:
        params = jax.tree.map(lambda a: _exchange_parts(a, stages, repeats), params)
    arrivals_R = jnp.asarray(_arrivals(stages, repeats))[stage]

    def send(x_bTD, places: int):
        """Send to the stage that is so many places on."""
        return jax.lax.ppermute(x_bTD, "stage", [(s, (s + places) % stages) for s in range(stages)])

    def swap(t, arrived_bTD, conveyor_bTD, own_KbTD):
        """Before tick t: lay on the conveyor and take from it. Return too what enters, and some rows for the bubble."""
        now = t // period
        starts, done, next_ = t % period == 0, jnp.maximum(now - 2, 0), jnp.minimum(now, rounds - 1)
        # As a round enters, the results of the one before the last are home.
        kept_bTD = jnp.where(starts & (now >= 2), conveyor_bTD, own_KbTD[done])
        own_KbTD = jax.lax.dynamic_update_index_in_dim(own_KbTD, kept_bTD, done, 0)
        fresh_bTD = own_KbTD[next_]
        conveyor_bTD = jnp.where(starts & (now < rounds), fresh_bTD, conveyor_bTD)
        enters = (stage == 0) & (t % period < stages)
        x_bTD = jnp.where(enters, conveyor_bTD, arrived_bTD)
        return x_bTD, jnp.where(enters, arrived_bTD, conveyor_bTD), own_KbTD, fresh_bTD

    def tick(carry, t):
        *carry, gradient = carry
        x_bTD, conveyor_bTD, own_KbTD, fresh_bTD = swap(t, *carry)
        step = jnp.maximum(t - stage, 0)
        number = step // period * stages + step % stages  # of the micro-batch, as they enter
        micro = schedule.micro_batch(jnp.minimum(number, schedule.micro_batches - 1))
        side_bT = {name: a_MbT[micro] for name, a_MbT in side_MbT.items()}
        x_bTD = jnp.where((t >= stage) & (number < schedule.micro_batches), x_bTD, fresh_bTD)
        part = step // stages % repeats
        first_layer = (part * stages + stage) * part_layers
        own_key = None if key is None else jax.random.fold_in(key, micro)
        inputs = (x_bTD, side_bT, first_layer, own_key)
        if repeats == 1:
            x_bTD, aux = blocks(params, *inputs)
        else:
            (x_bTD, aux), gradient = _apply_part(blocks, params, arrivals_R[part], gradient, *inputs)
        return (send(x_bTD, 1), send(conveyor_bTD, -1), own_KbTD, gradient), aux

    nothing_bTD = jnp.zeros_like(own_KbTD[0])
    carry = (nothing_bTD, nothing_bTD, own_KbTD, params if repeats > 1 else None)
    (*carry, _), aux = jax.lax.scan(tick, carry, jnp.arange(schedule.ticks))
    # The last results are on the conveyor, all the same number of places from home.
    _, conveyor_bTD, own_KbTD, _ = swap(jnp.asarray(schedule.ticks), *carry)
    conveyor_bTD = send(conveyor_bTD, -1)
    own_KbTD = jax.lax.dynamic_update_index_in_dim(own_KbTD, conveyor_bTD, rounds - 1, 0)

    def of_micro_batches(aux_t):
        """A stage's ticks outside the bubble, added up over its parts."""
        aux_t = jax.lax.dynamic_slice_in_dim(aux_t, stage, schedule.ticks - stages + 1)
        aux_t = jnp.pad(aux_t, (0, rounds * period - aux_t.shape[0]))
        aux_KS = jnp.sum(aux_t.reshape(rounds, repeats, stages), axis=1)
        return jax.lax.psum_scatter(aux_KS.T.reshape(-1), "stage", tiled=True)

    return own_KbTD, jax.tree.map(of_micro_batches, aux)


def _apply_part(blocks: Callable, params: Any, part: jax.Array, gradient: Any, x_bTD: jax.Array, *rest):
    """Return `blocks(params[part], x_bTD, *rest)`, and `gradient`, which is `params` for differentiation.

    The part is taken again for the backward pass: kept, it would be a copy of the part for each tick. A
    `jax.checkpoint` around `blocks` would not do: its policy takes the place of those inside, or everything is applied
    once more. What `blocks` makes of its parameters outside of its own `jax.checkpoint` is kept.

    `gradient` goes through all ticks, so that its cotangent does: a part's gradient is added to that in place. The
    transpose of taking a part would add a whole array, zero but for the part, in each tick.
    """
    take = lambda params, part: jax.tree.map(lambda a: a[part], params)  # noqa: E731

    @jax.custom_vjp
    def run(gradient, x_bTD, params, part, rest):
        return blocks(take(params, part), x_bTD, *rest), gradient

    def forward(gradient, x_bTD, params, part, rest):
        own = take(params, part)
        out, pullback = jax.vjp(lambda own, x_bTD: blocks(own, x_bTD, *rest), own, x_bTD)
        return (out, gradient), (Pullback.without(pullback, own), params, part)

    def backward(kept, cotangents):
        (pullback, params, part), (out, gradient) = kept, cotangents
        own, x_bTD = pullback.restored(take(params, part))(out)
        add = lambda a, part_a: jax.lax.dynamic_update_index_in_dim(a, a[part] + part_a, part, 0)  # noqa: E731
        return jax.tree.map(add, gradient, own), x_bTD, None, None, None

    run.defvjp(forward, backward)
    return run(gradient, x_bTD, jax.lax.stop_gradient(params), part, rest)


def _permutes(stages: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `[R, S]`: which of its parts a stage sends in the k-th of R permutes, and to which stage.

    Outside the pipeline stage s holds the parts s R .. s R + R - 1 of all R S, inside it is stage p mod S that needs
    part p. In a permute each stage must be sent one part: (s R + j) mod S over all s, with j = k for all, meets only
    the multiples of g = gcd(R, S) plus k, g times each; shifting j by one from each S / g stages to the next meets all.
    """
    turn_R1, stage_S = np.arange(repeats)[:, None], np.arange(stages)
    part_RS = (turn_R1 + stage_S // (stages // math.gcd(stages, repeats))) % repeats
    return part_RS, (stage_S * repeats + part_RS) % stages


def _arrivals(stages: int, repeats: int) -> np.ndarray:
    """Return `[S, R]`: in which permute a stage's r-th part comes."""
    part_RS, to_RS = _permutes(stages, repeats)
    arrival_SR = np.zeros((stages, repeats), np.int32)
    for turn, stage in np.ndindex(repeats, stages):
        arrival_SR[to_RS[turn, stage], (stage * repeats + part_RS[turn, stage]) // stages] = turn
    return arrival_SR


def _exchange_parts(leaf_L: jax.Array, stages: int, repeats: int) -> jax.Array:
    """Return `[R, L / (R S), …]`, this stage's parts in the order of arrival, of its `[L / S, …]` contiguous layers."""
    parts_R = leaf_L.reshape(repeats, -1, *leaf_L.shape[1:])
    stage = jax.lax.axis_index("stage")
    received = [
        jax.lax.ppermute(parts_R[jnp.asarray(part_S)[stage]], "stage", list(enumerate(to_S.tolist())))
        for part_S, to_S in zip(*_permutes(stages, repeats), strict=True)
    ]
    return jnp.stack(received)
