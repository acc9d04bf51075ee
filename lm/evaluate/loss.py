"""Loss, perplexity and bits per byte of a model on evaluation batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lm.kernels.linear import in_compute_type
from lm.objectives import next_token
from lm.parallel.mesh import place_batch, replicated
from lm.parallel.zero import Zero


class LossEvaluator:
    """Scores batches of one shape with one compiled program.

    Args:
      model: a `Transformer`.
      zero: how its parameters lie on the mesh; the batch size must be a multiple of the mesh's batch shards.
      cross_entropy: sharded for the mesh (`lm.parallel.loss.make_cross_entropy`).
    """

    def __init__(self, model, zero: Zero, cross_entropy: Callable):
        self._mesh, local_model = zero.mesh, zero.model(model)

        def local_sums(params, batch):
            batch = {name: a[0] for name, a in batch.items()}
            params = zero.gather_outside_layers(params)
            _, sums = next_token(
                local_model, params, batch, cross_entropy=cross_entropy, grad_scale=1.0, dropout_key=None
            )
            return zero.sum(sums)

        sums = zero.local(local_sums, (zero.parameter_specs, zero.micro_batches), PartitionSpec())
        self._sums = jax.jit(in_compute_type(sums, model.precision.compute), out_shardings=replicated(self._mesh))

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
            shape = (1, *batch["inputs_BT"].shape)
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
