"""Evaluation in strided windows: every token of every document is scored once, with context before it."""

from collections.abc import Iterator, Sequence

import numpy as np

from lm.data.dataset import Dataset
from lm.data.packing import ListedPlan, best_fit
from lm.data.permutation import permute, round_keys
from lm.data.rows import Batch, fill_rows
from lm.data.shards import Shard
from lm.tokenizer import Tokenizer


def strided_windows(
    doc_starts: np.ndarray, doc_lengths: np.ndarray, length: int, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into overlapping windows.

    A document of n tokens has n targets (its last token's is the next document's eot). Its window k begins
    at token k·stride; the first scores all its targets, each later one those that no window before it did:
    its last `stride`, or fewer at the document's end. So a target has at least `length - stride` tokens of
    context, or all there is.

    Args:
      doc_starts, doc_lengths: int [documents], in the token stream.
      length: T, tokens in a window at most.
      stride: from 1 (most context) to `length` (windows do not overlap).

    Returns:
      (starts, lengths, score_from): int64 [windows]; targets of a window before `score_from` do not count.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride}: expected 1 to {length}, the window's length.")
    doc_starts, doc_lengths = np.asarray(doc_starts, np.int64), np.asarray(doc_lengths, np.int64)
    counts = 1 + np.maximum(0, -(-(doc_lengths - length) // stride))
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within the document
    lengths = np.minimum(length, np.repeat(doc_lengths, counts) - number * stride)
    return np.repeat(doc_starts, counts) + number * stride, lengths, np.where(number > 0, length - stride, 0)


class EvalBatches:
    """Iterates over evaluation batches, all of one shape [B, T]; the last is filled up with weight 0.

    Windows are packed into rows best-fit, each a segment of its own. The arrays are the training loader's;
    positions that only give context have weight 0 and 0 target bytes.

    Attributes:
      num_tokens: targets that are scored, in all batches.
      num_batches: how many there are.
      num_documents: of all shards, scored or not.
      num_windows: that are scored.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        token_bytes_V: np.ndarray,
        *,
        sequence_length: int,
        batch_size: int,
        stride: int | None = None,
        max_tokens: int | None = None,
    ):
        """Plan the windows.

        Args:
          shards: token streams (`dataset.shards("validation")`, or `Shard.from_documents`).
          token_bytes_V: UTF-8 bytes per token id.
          sequence_length: T.
          batch_size: B.
          stride: new tokens per window; None: T, windows do not overlap.
          max_tokens: score windows, chosen by a fixed shuffle, until this many tokens are; None: all.
        """
        self._shards, self._token_bytes_V = list(shards), token_bytes_V
        self._length, self._batch_size = sequence_length, batch_size
        cut = [strided_windows(s.starts, s.lengths, sequence_length, stride or sequence_length) for s in self._shards]
        windows = np.concatenate([np.stack([*part, np.full_like(part[0], i)]) for i, part in enumerate(cut)], axis=1)
        if max_tokens is not None and windows.shape[1]:
            order = permute(np.arange(windows.shape[1]), windows.shape[1], round_keys("evaluation"))
            scored = np.cumsum(windows[1, order] - windows[2, order])
            windows = windows[:, np.sort(order[: 1 + np.searchsorted(scored, max_tokens)])]
        self._plans: list[tuple[ListedPlan, np.ndarray]] = []
        for number in range(len(self._shards)):
            starts, lengths, score_from = windows[:3, windows[3] == number]
            order, offsets = best_fit(lengths, sequence_length)
            self._plans.append((ListedPlan(starts, lengths, order, offsets), score_from))
        self.num_tokens = int((windows[1] - windows[2]).sum())
        self.num_batches = sum(map(self._batches_of, range(len(self._plans))))
        self.num_documents = sum(len(shard.ends) for shard in self._shards)
        self.num_windows = windows.shape[1]

    @staticmethod
    def of_split(dataset: Dataset, split: str, **options) -> "EvalBatches":
        """Return the batches of a prepared split; options as the constructor's."""
        return EvalBatches(dataset.shards(split), dataset.token_bytes, **options)

    @staticmethod
    def of_texts(tokenizer: Tokenizer, texts: Sequence[str], **options) -> "EvalBatches":
        """Return the batches of texts, a document each; options as the constructor's."""
        shard = Shard.from_documents(map(tokenizer.encode_document, texts), tokenizer.eot_id)
        return EvalBatches([shard], tokenizer.token_bytes, **options)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.num_batches):
            yield self.batch(number)
        self.check()

    def check(self) -> None:
        """Wait until the shards are verified; raises DamagedFileError if one is damaged."""
        for shard in self._shards:
            shard.check(wait=True)

    def _batches_of(self, place: int) -> int:
        """How many batches a shard fills, the last partial one counted."""
        return -(-self._plans[place][0].num_rows // self._batch_size)

    def batch(self, number: int) -> Batch:
        """Return one batch, by number from 0."""
        place, rows = self._locate(number)
        shard, (plan, score_from) = self._shards[place], self._plans[place]
        _, item = plan.items(rows)
        return fill_rows(
            shard,
            plan.runs(rows),
            self._batch_size,
            self._length,
            self._token_bytes_V,
            score_from=score_from[item],
        )

    def origins(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each position of a batch comes from: its document and its window, int64 [B, T], -1 on padding.

        Both are numbered over all shards, in the order of the stream; a token's place in its window is the batch's
        `positions_BT`.
        """
        place, rows = self._locate(number)
        plan, _ = self._plans[place]
        runs, (_, item) = plan.runs(rows), plan.items(rows)
        document = np.searchsorted(self._shards[place].ends.astype(np.int64), runs.start, side="right")
        document += sum(len(shard.ends) for shard in self._shards[:place])
        window = item + sum(len(plan.starts) for plan, _ in self._plans[:place])
        run = np.repeat(np.arange(len(runs.start)), runs.length)
        column = np.arange(len(run)) - np.repeat(np.cumsum(runs.length) - runs.length, runs.length) + runs.column[run]
        out = []
        for owner in (document, window):
            owner_BT = np.full((self._batch_size, self._length), -1, np.int64)
            owner_BT[runs.row[run], column] = owner[run]
            out.append(owner_BT)
        return out[0], out[1]

    def _locate(self, number: int) -> tuple[int, np.ndarray]:
        """Return the shard of a batch, and which of its plan's rows it holds."""
        place = 0
        while place < len(self._plans) and number >= self._batches_of(place):
            number -= self._batches_of(place)
            place += 1
        if number < 0 or place == len(self._plans):
            raise IndexError("no such evaluation batch")
        num_rows = self._plans[place][0].num_rows
        return place, np.arange(number * self._batch_size, min((number + 1) * self._batch_size, num_rows))
