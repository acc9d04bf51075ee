"""Dynamic loss scaling for fp16 (Micikevicius et al. 2018, "Mixed precision training").

The loss is multiplied by a scale, so that small gradients do not vanish in fp16, and gradients
are divided by it in f32. A step whose gradients overflow is skipped and halves the scale;
`loss_scale_interval` good steps in a row double it. The state lies in the checkpoint's `extra`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import PrecisionConfig

FLOOR = 1.0  # gradients that overflow here do so without any scaling: the run has diverged
CEILING = 2.0**24  # a run without large gradients must not double its scale to infinity
_GROWTH, _BACKOFF = 2.0, 0.5

State = dict[str, jax.Array]


def initial(precision: PrecisionConfig) -> State:
    """Return `scale` (f32), `good_steps` since it last changed and `skipped_steps` since the run began (int32)."""
    return {
        "scale": jnp.float32(precision.loss_scale_init),
        "good_steps": jnp.int32(0),
        "skipped_steps": jnp.int32(0),
    }


def adjusted(state: State, finite: jax.Array, interval: int) -> State:
    """Return the state after a step whose gradients were all finite, or not."""
    good_steps = jnp.where(finite, state["good_steps"] + 1, 0)
    grown = good_steps >= interval
    scale = state["scale"] * jnp.where(finite, jnp.where(grown, _GROWTH, 1.0), _BACKOFF)
    return {
        "scale": jnp.clip(scale, FLOOR, CEILING),
        "good_steps": jnp.where(grown, 0, good_steps),
        "skipped_steps": state["skipped_steps"] + jnp.where(finite, 0, 1),
    }


def skip_overflow(new: Any, old: Any, metrics: Mapping[str, jax.Array], interval: int) -> tuple[Any, State]:
    """Return the state after a step, the old one if the step's gradients overflowed, and what to report.

    Args:
      new, old: `TrainState`s after and before the step; `old.extra["loss_scale"]` is the scale's state.
      metrics: the step's `loss` and `grad_norm`: one of them is not finite if any gradient is not.
      interval: `precision.loss_scale_interval`.

    Returns:
      The state with the adjusted scale, and the metrics `loss_scale`, of this step, and `skipped_steps`,
      this one included.
    """
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    before = old.extra["loss_scale"]
    after = adjusted(before, finite, interval)
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = dataclasses.replace(state, extra={**state.extra, "loss_scale": after})
    return state, {"loss_scale": before["scale"], "skipped_steps": after["skipped_steps"]}
