"""Log-likelihoods of continuations: what choosing between answers is made of.

Requests are packed as trees into rows (`lm.evaluate.prefixes`), and logits are made only where a token's probability
is asked for: of a question of 100 tokens and an answer of one, that is one place.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.axes import ACTIVATION_AXES, BATCH_AXES
from lm.config import Config
from lm.evaluate.prefixes import Forest, PackedBatch, pack, rounded_up, truncated
from lm.evaluate.tree_attention import tree_attention
from lm.kernels.linear import in_compute_type
from lm.parallel.local import local_model
from lm.parallel.mesh import replicated

_CHUNK = 1024  # slots whose logits exist at one time
_PER_DEVICE = {"cpu": 2048}  # tokens in a batch
_PER_ACCELERATOR = 16384


class Score(NamedTuple):
    """Of a continuation: the sum of its tokens' log-probabilities in nats, and whether greedy decoding gives it."""

    loglikelihood: float
    is_greedy: bool


class Scorer:
    """Scores continuations given contexts, on any mesh.

    Args:
      config: resolved, with its `vocab_size`.
      mesh: the device mesh; devices of one sequence (`context`) repeat each other's work here.
      max_length: tokens that the model takes; contexts are cut from the left to fit. None: all its learned positions,
        or the training length.
      row_length: T, tokens in a row at least; rows are longer where requests are, or where that saves work.
      batch_tokens: tokens in a batch, per device that has rows of its own; None: by the kind of device.
      share: what requests begin with alike is computed once; False: every request alone. Windows (which count places
        in a row) and blocks of one's own turn it off.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        *,
        max_length: int | None = None,
        row_length: int = 128,
        batch_tokens: int | None = None,
        share: bool = True,
    ):
        model = config.model
        windows = [model.per_layer("window", number) for number in range(model.period)]
        self._share = share and not any(windows) and ":" not in model.block
        positions = model.max_positions if model.positions == "learned" else None
        self.max_length = max_length or positions or config.data.sequence_length
        self._row_length = row_length
        platform = mesh.devices.flat[0].platform
        self._batch_tokens = batch_tokens or _PER_DEVICE.get(platform, _PER_ACCELERATOR)
        self._mesh, self._width = mesh, model.d_model
        self._stages = mesh.shape["stage"]
        self._parts = self._stages * int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._rows_spec = PartitionSpec(*(ACTIVATION_AXES[letter] for letter in "AB"))
        local = local_model(config, mesh, micro_batches=self._stages, attention=tree_attention)

        def own_scores(params, rows, slots):
            tokens_BT, positions_BT, ends_BT = (
                rows[name].reshape(-1, rows[name].shape[-1]) for name in ("tokens_PRT", "positions_PRT", "ends_PRT")
            )
            params = local.zero.gather_outside_layers(params)
            hidden_BTD = local.model.hidden(params, tokens_BT, positions_BT, ends_BT).x_BTD
            hidden_BTD = local.model.layout.enter(hidden_BTD, tokens_BT.shape[1])
            hidden_SD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[slots["parent_PS"].reshape(-1)]
            head_DV = local.model.head(params)
            axis = "tensor" if head_DV.shape[1] < model.vocab_size else None
            scores = token_scores(
                hidden_SD, head_DV, slots["target_PS"].reshape(-1), softcap=model.logit_softcap, vocab_axis=axis
            )
            return tuple(score_S.reshape(1, 1, -1) for score_S in scores)

        # A part's arrays are [1, 1, …] on its device.
        specs = (local.zero.parameter_specs, self._rows_spec, self._rows_spec)
        scores = local.zero.local(own_scores, specs, (self._rows_spec, self._rows_spec))
        self._program = jax.jit(in_compute_type(scores, config.precision.compute), out_shardings=replicated(mesh))

    def __call__(self, params: Any, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Return the scores of `(context ids, continuation ids)`, in order; raises as `stream`."""
        out: list[Score | None] = [None] * len(requests)
        for batch in self.stream(params, requests):
            for number, score in batch:
                out[number] = score
        return out

    def stream(
        self, params: Any, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Iterator[list[tuple[int, Score]]]:
        """Yield, batch by batch, the numbers of the requests in it and their scores.

        Args:
          params: the model's parameters.
          requests: `(context ids, continuation ids)`, at least one id each.

        Raises:
          UsageError: an empty context or continuation, or a continuation longer than `max_length`.
        """
        pending: list[tuple[PackedBatch, Any]] = []
        for batch in self.batches(requests):
            pending.append((batch, self._program(params, *self._placed(batch))))
            if len(pending) > 1:  # the next batch is under way before one is waited for
                yield _collected(*pending.pop(0))
        for batch, scores in pending:
            yield _collected(batch, scores)

    def batches(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[PackedBatch]:
        """Return the batches that `stream` computes; raises as it does."""
        if not requests:
            return []
        ids = [truncated(*request, self.max_length) for request in requests]
        scored = [len(continuation) for _, continuation in requests]
        forest = Forest(ids, scored, share=self._share)
        length = self._length_of_rows(forest, max(map(len, ids)) - 1)
        max_rows = max(1, self._batch_tokens // length)
        return pack(forest.trees(length), parts=self._parts, max_rows=max_rows, length=length)

    def _length_of_rows(self, forest: Forest, longest: int) -> int:
        """Return T: long rows share more and leave less room at their ends, and cost more attention.

        Per token and layer, matmuls take 24 D^2 FLOPs and causal attention 2 T D, which runs at about half their speed
        on the CPU.
        """
        shortest = max(self._row_length, rounded_up(longest))

        def cost(length: int) -> float:
            return forest.num_rows(length) * length * (1 + length / (6 * self._width))

        return min((rounded_up(shortest * steps // 2) for steps in (2, 3, 4, 6, 8)), key=cost)

    def _placed(self, batch: PackedBatch) -> tuple[dict, dict]:
        """Place a batch on the devices: `[stages, parts of a stage, …]`, the first two divided."""
        sharding = NamedSharding(self._mesh, self._rows_spec)

        def place(a):
            a = a.reshape(self._stages, -1, *a.shape[1:])
            return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

        return jax.tree.map(place, batch.rows), jax.tree.map(place, batch.slots)


def token_scores(
    hidden_SD: jax.Array,
    head_DV: jax.Array,
    targets_S: jax.Array,
    *,
    softcap: float | None = None,
    vocab_axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return `(log p(target)_S` in f32 nats, whether the target is the most likely token `_S)`.

    Args:
      hidden_SD: final hidden states in the compute type.
      head_DV: output head in the parameter type.
      targets_S: int32 token ids.
      softcap: c * tanh(logit / c) on the logits.
      vocab_axis: the mesh axis, local here, over whose devices `head_DV` is split along V in equal parts.
    """
    chunk = min(_CHUNK, len(targets_S))
    padding = -len(targets_S) % chunk
    hidden_nCD = jnp.pad(hidden_SD, ((0, padding), (0, 0))).reshape(-1, chunk, hidden_SD.shape[1])
    targets_nC = jnp.pad(targets_S, (0, padding)).reshape(-1, chunk)
    score = functools.partial(_chunk_scores, head_DV.astype(hidden_SD.dtype), softcap, vocab_axis)
    out = jax.lax.map(lambda own: score(*own), (hidden_nCD, targets_nC))
    return tuple(score_nC.reshape(-1)[: len(targets_S)] for score_nC in out)


def _chunk_scores(head_DV, softcap, vocab_axis, hidden_CD, targets_C):
    logits_CV = jnp.einsum("CD,DV->CV", hidden_CD, head_DV, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits_CV = softcap * jnp.tanh(logits_CV / softcap)
    num_columns = logits_CV.shape[1]
    own_C = targets_C if vocab_axis is None else targets_C - jax.lax.axis_index(vocab_axis) * num_columns
    top_C, lse_C = jnp.max(logits_CV, axis=-1), jax.nn.logsumexp(logits_CV, axis=-1)
    logit_C = jnp.take_along_axis(logits_CV, jnp.clip(own_C, 0, num_columns - 1)[:, None], axis=-1)[:, 0]
    if vocab_axis is not None:
        logit_C = jnp.where((own_C >= 0) & (own_C < num_columns), logit_C, -jnp.inf)
        parts_n3C = jax.lax.all_gather(jnp.stack([top_C, lse_C, logit_C]), vocab_axis)
        top_C, logit_C = jnp.max(parts_n3C[:, 0], axis=0), jnp.max(parts_n3C[:, 2], axis=0)
        lse_C = jax.nn.logsumexp(parts_n3C[:, 1], axis=0)
    return logit_C - lse_C, logit_C >= top_C


def _collected(batch: PackedBatch, scores: tuple[jax.Array, jax.Array]) -> list[tuple[int, Score]]:
    logp, greedy = (np.asarray(a).reshape(-1) for a in jax.device_get(scores))
    numbers, slots = zip(*batch.requests, strict=True)
    starts = np.cumsum([0, *map(len, slots)])[:-1]
    slots = np.concatenate(slots)
    sums = np.add.reduceat(logp[slots].astype(np.float64), starts)
    all_greedy = np.logical_and.reduceat(greedy[slots], starts)
    return list(zip(numbers, map(Score, sums.tolist(), all_greedy.tolist()), strict=True))
