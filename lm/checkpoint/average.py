"""The mean of a run's newest checkpoints (Izmailov et al. 2018, along one trajectory)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.checkpoint.store import Checkpoints
from lm.errors import DamagedFileError, UsageError


def restore_average(
    checkpoints: Checkpoints, params: Any, count: int, *, step: int | None = None, warn: Callable[[str], None]
) -> tuple[Any, tuple[int, ...]]:
    """Return the mean of the parameters of `count` checkpoints in f32, and their steps, oldest first.

    They are read one after the other: beside the sum, only one is in memory.

    Args:
      checkpoints: of the run.
      params: tree of `jax.ShapeDtypeStruct` with shardings.
      count: how many, from the newest on.
      step: the newest to use; None: the newest there is.
      warn: gets one line about each damaged checkpoint that is passed over.

    Raises:
      UsageError: there are fewer, or none of that step.
    """
    steps = checkpoints.steps()
    if step is not None and step not in steps:
        raise UsageError(f'no checkpoint of step {step} in "{checkpoints.folder}"; there are {steps}.')
    add = jax.jit(lambda total, new: jax.tree.map(jnp.add, total, _f32(new)), donate_argnums=0)
    total, used = None, []
    for candidate in reversed([s for s in steps if step is None or s <= step]):
        if len(used) == count:
            break
        try:
            restored = checkpoints.restore({"params": params}, step=candidate).items["params"]
        except DamagedFileError as error:
            warn(f"passing over a damaged checkpoint: {error}")
            continue
        total = _f32(restored) if total is None else add(total, restored)
        del restored
        used.append(candidate)
    if len(used) < count:
        upto = "" if step is None else f" up to step {step}"
        raise UsageError(
            f'--average {count}: "{checkpoints.folder}" has {len(used)} checkpoints{upto} that can be read; '
            "more are kept with config.checkpoint.keep."
        )
    return jax.tree.map(lambda a: a / count, total), tuple(reversed(used))


def _f32(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)
