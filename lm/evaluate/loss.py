"""Loss, perplexity and bits per byte of a model on evaluation batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lm.kernels.linear import in_compute_type
from lm.objectives import next_token
from lm.parallel.local import LocalModel
from lm.parallel.mesh import batch_spec, place_batch, replicated


class LossEvaluator:
    """Scores batches of one shape with one compiled program.

    Args:
      local: the model on its mesh (`lm.parallel.local.local_model`, with a micro-batch for each pipeline stage); the
        batch size must be a multiple of what the mesh divides it into.
    """

    def __init__(self, local: LocalModel):
        self._mesh, zero = local.mesh, local.zero

        def own_sums(params, batch):
            batch = {name: a.reshape(-1, a.shape[2]) for name, a in batch.items()}
            _, sums = local.objective(next_token, params, batch, grad_scale=1.0, dropout_key=None)
            return zero.sum(sums)

        sums = zero.local(own_sums, (zero.parameter_specs, batch_spec()), PartitionSpec())
        self._sums = jax.jit(in_compute_type(sums, local.model.precision.compute), out_shardings=replicated(self._mesh))

    def __call__(
        self,
        params: Any,
        batches: Iterable[Mapping[str, np.ndarray]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> dict[str, float]:
        """Return `loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens` and `bytes`.

        Args:
          params: the model's parameters.
          batches: `[B, T]` arrays as `lm.data.windows.EvalBatches` gives them.
          progress: called with the number of batches done.

        Document separators are predicted too: their nats count, their bytes are 0.
        """
        total = {"nll": 0.0, "tokens": 0.0, "bytes": 0.0}
        pending: list[Mapping[str, jax.Array]] = []

        def collect():
            sums = jax.device_get(pending.pop(0))
            for name in total:
                total[name] += float(sums[name])

        for number, batch in enumerate(batches):
            (B, T), stages = batch["inputs_BT"].shape, self._mesh.shape["stage"]
            shape = (stages, B // stages, T)
            placed = place_batch(
                self._mesh, shape, lambda rows, columns, batch=batch: {k: a[rows][:, columns] for k, a in batch.items()}
            )
            pending.append(self._sums(params, placed))
            if len(pending) > 2:  # fetched late, so the device never waits for the host
                collect()
            progress(number + 1)
        while pending:
            collect()
        return summarize(total["nll"], total["tokens"], total["bytes"])


def summarize(nll: float, tokens: float, num_bytes: float) -> dict[str, float]:
    """Return the figures of a summed negative log-likelihood in nats; None where they are not defined."""
    loss = nll / tokens if tokens else None
    return {
        "loss": loss,
        "perplexity": None if loss is None else math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": nll / num_bytes / math.log(2) if num_bytes else None,
        "tokens": int(tokens),
        "bytes": int(num_bytes),
    }
