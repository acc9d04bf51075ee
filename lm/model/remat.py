"""What the backward pass recomputes instead of keeping (Chen et al. 2016): `config.model.remat`, layer by layer.

- `none`: nothing is recomputed (but views of the stacked parameters, where a window pattern has several layers).
- `full`: everything; a layer keeps its input alone.
- `dots`: everything but the matmuls against parameters.
- names of `lm.axes.ACTIVATIONS` (or `dots`), separated by commas: these are kept, the rest is recomputed.
- `offload:` before names: these go to the host's memory and come back in the backward pass; names that are kept
  may stand before it (`attention_out,offload:block_input`).

Each layer is one unit, also where a window pattern makes the scan run over groups of layers. A group as the unit
would keep fewer inputs, but have the activations of all its layers alive at one time: `full`, compiled for a v5e
with six layers in a group and the reference attention, took 1,505 MiB by layers and 4,677 by groups
(`experiments/benchmarks/remat.py`), and 3,481 by layers without `prevent_cse`, whose barriers keep XLA from recomputing
all layers of a group at once.
"""

from collections.abc import Callable

import jax

from lm.config import remat_names

# Slices of the stacked parameters: kept, they would be copies of the parameters themselves.
_VIEWS = frozenset({"slice", "squeeze", "reshape", "dynamic_slice"})


def rematerialized(layer: Callable, policy: str, *, sliced: bool) -> Callable:
    """Return `layer(number, …)` with its backward pass under a remat policy; `number` is static.

    Args:
      layer: one layer, which takes its own parameters out of the stacked ones that it is given.
      policy: a resolved `config.model.remat`.
      sliced: taking them out makes views (several layers in a group).
    """
    if policy == "none" and not sliced:
        return layer
    return jax.checkpoint(layer, policy=_checkpoint_policy(policy), static_argnums=0)


def _checkpoint_policy(policy: str) -> Callable:
    if policy == "none":
        return lambda primitive, *_, **__: primitive.name not in _VIEWS
    saved, offloaded = remat_names(policy)
    saved = ["linear" if name == "dots" else name for name in saved]  # as `lm.kernels.linear` names its results
    if not offloaded:
        return jax.checkpoint_policies.save_only_these_names(*saved)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=saved,
        names_which_can_be_offloaded=offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )
