"""Loss, perplexity and bits per byte of a model on evaluation batches."""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lm.kernels.linear import in_compute_type
from lm.objectives import next_token
from lm.parallel.columns import is_split, zigzag
from lm.parallel.local import LocalModel
from lm.parallel.mesh import batch_spec, place_batch, replicated


class LossEvaluator:
    """Scores batches of one shape with one compiled program: sums over all tokens, or, where asked for, each token.

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

        def own_tokens(params, batch):
            rows = {name: a.reshape(-1, a.shape[2]) for name, a in batch.items()}
            _, nll_BT = local.objective(_each_token, params, rows, grad_scale=1.0, dropout_key=None)
            return nll_BT.reshape(batch["weights_BT"].shape)

        def compiled(function, out_spec):
            function = zero.local(function, (zero.parameter_specs, batch_spec()), out_spec)
            exact = in_compute_type(function, local.model.precision.compute)
            return jax.jit(exact, out_shardings=replicated(self._mesh))

        self._sums = compiled(own_sums, PartitionSpec())
        self._sums_of_many = jax.jit(jax.vmap(self._sums, in_axes=(0, None)), out_shardings=replicated(self._mesh))
        self._tokens = compiled(own_tokens, batch_spec())

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
        for _, sums in self._run(self._sums, params, batches, progress):
            for name in total:
                total[name] += float(sums[name])
        return summarize(total["nll"], total["tokens"], total["bytes"])

    def of_many(self, params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> list[dict[str, float]]:
        """Return what a call returns, for each of K models of one shape, in one program.

        Args:
          params: their parameters, stacked on a leading K.
          batches: as of a call.
        """
        total: dict[str, Any] = dict.fromkeys(("nll", "tokens", "bytes"), 0.0)
        for _, sums in self._run(self._sums_of_many, params, batches, lambda done: None):
            total = {name: so_far + sums[name].astype(np.float64) for name, so_far in total.items()}
        return [summarize(*map(float, of_one)) for of_one in zip(*total.values(), strict=True)]

    def tokens(
        self,
        params: Any,
        batches: Iterable[Mapping[str, np.ndarray]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray]]:
        """Yield each batch with the negative log-likelihood of its targets, f32 `[B, T]` in nats, 0 where not scored.

        Arguments as of a call.
        """
        context = self._mesh.shape["context"]
        for batch, nll_ABT in self._run(self._tokens, params, batches, progress):
            nll_BT = nll_ABT.reshape(batch["weights_BT"].shape)
            if is_split(nll_BT.shape[1], context):  # from the order in which the devices have the columns
                nll_BT = nll_BT[:, np.argsort(zigzag(nll_BT.shape[1], context))]
            yield batch, nll_BT

    def _run(self, program: Callable, params: Any, batches: Iterable, progress: Callable[[int], None]) -> Iterator:
        """Yield (batch, what the program gives of it, on the host), fetched late: the device never waits for the host."""
        pending: collections.deque = collections.deque()
        # A CPU would run them at the same time, each with its own temporaries.
        late = 0 if self._mesh.devices.flat[0].platform == "cpu" else 2

        def oldest():
            batch, out = pending.popleft()
            return batch, jax.device_get(out)

        for number, batch in enumerate(batches):
            (B, T), stages = batch["inputs_BT"].shape, self._mesh.shape["stage"]
            shape = (stages, B // stages, T)
            placed = place_batch(
                self._mesh, shape, lambda rows, columns, batch=batch: {k: a[rows][:, columns] for k, a in batch.items()}
            )
            pending.append((batch, program(params, placed)))
            if len(pending) > late:
                yield oldest()
            progress(number + 1)
        while pending:
            yield oldest()


def _each_token(model, params, batch, *, cross_entropy, grad_scale, dropout_key):
    """Return (0, weighted nll `[B, T]`): an objective in form, for `LocalModel.objective`."""
    hidden = model.hidden(
        params, batch["inputs_BT"], batch["positions_BT"], batch["segment_ids_BT"], dropout_key=dropout_key
    )
    options = {"softcap": model.config.logit_softcap, "chunk": model.config.loss_chunk}
    head_DV, weights_BT = model.head(params), batch["weights_BT"]
    _, nll_BT = cross_entropy(hidden.x_BTD, head_DV, batch["targets_BT"], weights_BT, grad_scale, **options)
    return 0.0, nll_BT * weights_BT


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
