"""The loss of every document, window and position, and what is made of them: per domain, per place in the window."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.data.windows import EvalBatches
from lm.evaluate.loss import LossEvaluator, summarize

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Summed negative log-likelihood in nats, tokens and bytes, f64 `[…, 3]`, of what was scored.

    Attributes:
      documents: `[documents, 3]`, in the order of the shards.
      windows: `[windows, 3]`, in the order of the stream.
      positions: `[T, 3]`, by the target's place in its window: that many tokens and one stand before it.
    """

    documents: np.ndarray
    windows: np.ndarray
    positions: np.ndarray

    def total(self) -> Figures:
        """Return the figures of everything (`lm.evaluate.loss.summarize`)."""
        return summarize(*self.documents.sum(0))

    def by_domain(self, domains: Sequence[str]) -> dict[str, Figures]:
        """Return the figures of each domain, in the order in which they first come.

        Args:
          domains: of each document.
        """
        names = list(dict.fromkeys(domains))
        number = {name: i for i, name in enumerate(names)}
        sums = np.zeros((len(names), 3))
        np.add.at(sums, [number[domain] for domain in domains], self.documents)
        return {name: summarize(*own) for name, own in zip(names, sums, strict=True)}

    def by_position(self) -> list[Figures]:
        """Return the figures of places 0, 1, 2 to 3, 4 to 7, … of the window, with their `first` and `last`."""
        length = len(self.positions)
        edges = [0, *(2**i for i in range(length.bit_length()) if 2**i < length), length]
        return [
            {"first": first, "last": after - 1, **summarize(*self.positions[first:after].sum(0))}
            for first, after in zip(edges, edges[1:], strict=False)
        ]


def break_down(
    evaluator: LossEvaluator,
    params: Any,
    batches: EvalBatches,
    progress: Callable[[int], None] = lambda done: None,
) -> Breakdown:
    """Score batches token by token and return the sums of each document, window and position."""
    T = batches.batch(0)["inputs_BT"].shape[1] if len(batches) else 1
    sizes = (batches.num_documents, batches.num_windows, T)
    sums = [np.zeros((size, 3)) for size in sizes]
    for number, (batch, nll_BT) in enumerate(evaluator.tokens(params, batches, progress)):
        document_BT, window_BT = batches.origins(number)
        scored = batch["weights_BT"] > 0
        values = np.stack([nll_BT[scored], batch["weights_BT"][scored], batch["target_bytes_BT"][scored]], -1)
        for total, owner_BT in zip(sums, (document_BT, window_BT, batch["positions_BT"]), strict=True):
            for column in range(3):
                total[:, column] += np.bincount(owner_BT[scored], values[:, column], minlength=len(total))
    return Breakdown(*sums)
