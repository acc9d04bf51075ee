"""The training loader: `batch(step)` is a pure function of (manifest hash, seed, step)."""

from typing import Any

import numpy as np

from lm.data.dataset import Dataset, open_data
from lm.data.packing import best_fit_plan, concat_plan
from lm.data.permutation import permute, round_keys
from lm.data.rows import Batch, fill_rows
from lm.errors import UsageError


class Loader:
    """Batches of one split, by step. There is no iterator state: a checkpoint stores rows consumed.

    Rows are numbered over the run: row i of step s is number s·B + i. Number n is in epoch
    n // rows_per_epoch, and each epoch goes through all rows in an order of its own.

    Attributes:
      dataset: the opened folder.
      sequence_length, batch_size: T and B (global).
      rows_per_epoch: rows in the split.
      tokens_per_epoch: targets of weight 1 in one epoch.
      padding: the share of positions that are padding.
    """

    def __init__(
        self,
        data: Dataset | str,
        *,
        sequence_length: int,
        batch_size: int,
        split: str = "train",
        packing: str = "concat",
        document_mask: bool = True,
        seed: int = 0,
    ):
        """Open a split and plan its rows.

        Args:
          data: a prepared folder or an opened one.
          sequence_length: T.
          batch_size: B, rows per step over all hosts.
          split: `train`, `validation` or `test`.
          packing: `concat` or `best_fit`, see lm/data/packing.py.
          document_mask: number documents in `segment_ids_BT`; otherwise a row is one segment.
          seed: of the order of rows.

        Raises:
          UsageError: no such folder, or the split is empty.
          DamagedFileError: a shard is truncated or changed.
        """
        plans = {
            "concat": lambda shard: concat_plan(shard.num_tokens, sequence_length),
            "best_fit": lambda shard: best_fit_plan(shard.starts, shard.lengths, sequence_length),
        }
        if packing not in plans:
            raise UsageError(f"unknown packing {packing!r}: expected one of {', '.join(plans)}.")
        self.dataset = open_data(data) if isinstance(data, str) else data
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.split, self.seed, self._document_mask = split, seed, document_mask
        self._shards = self.dataset.shards(split)
        self._plans = [plans[packing](shard) for shard in self._shards]
        self._first_rows = np.cumsum([0, *(plan.num_rows for plan in self._plans)])
        self.rows_per_epoch = int(self._first_rows[-1])
        self.tokens_per_epoch = sum(plan.num_tokens for plan in self._plans)
        self.padding = 1 - self.tokens_per_epoch / (self.rows_per_epoch * sequence_length)

    @property
    def manifest_hash(self) -> str:
        """The data's identity, which a resumed run must find unchanged."""
        return self.dataset.hash

    @property
    def vocab_size(self) -> int:
        """V of the tokenizer, special tokens included."""
        return self.dataset.vocab_size

    @property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes per token id: int32 [V]."""
        return self.dataset.token_bytes

    def rows_consumed(self, step: int) -> int:
        """Rows read before a step."""
        return step * self.batch_size

    def epoch(self, step: int) -> float:
        """Epochs read before a step."""
        return self.rows_consumed(step) / self.rows_per_epoch

    def batch(self, step: int, rows: Any = None, columns: Any = None) -> Batch:
        """Return the step's batch, or the part of it that a host needs.

        Args:
          step: from 0.
          rows: slice or indices into the global batch's B rows; None: all.
          columns: slice or indices into its T columns; None: all.

        Returns:
          `inputs_BT`, `targets_BT`, `segment_ids_BT`, `positions_BT`, `target_bytes_BT` int32 and
          `weights_BT` float32, as `lm.data.rows.fill_rows` describes.
        """
        numbers = self.rows_consumed(step) + np.arange(self.batch_size)
        batch = self.numbered_rows(numbers if rows is None else numbers[rows])
        return batch if columns is None else {name: array[:, columns] for name, array in batch.items()}

    def numbered_rows(self, numbers: np.ndarray) -> Batch:
        """Return the rows with these numbers in the run's order, which knows no batch size."""
        return self._rows(self.row_indices(numbers))

    def row_indices(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of the split's rows the run reads at these numbers: int64, below `rows_per_epoch`."""
        epochs, places = np.divmod(np.asarray(numbers, np.int64), self.rows_per_epoch)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            indices[now] = permute(places[now], self.rows_per_epoch, round_keys(self.seed, epoch))
        return indices

    def _rows(self, indices: np.ndarray) -> Batch:
        shard_of_row = np.searchsorted(self._first_rows, indices, side="right") - 1
        parts = {}
        for number in np.unique(shard_of_row).tolist():
            here = np.flatnonzero(shard_of_row == number)
            plan = self._plans[number]
            parts[number] = (
                here,
                fill_rows(
                    self._shards[number],
                    plan.runs(indices[here] - self._first_rows[number]),
                    len(here),
                    self.sequence_length,
                    self.token_bytes,
                    crosses_documents=plan.crosses_documents,
                    document_mask=self._document_mask,
                ),
            )
        if len(parts) == 1:
            return next(iter(parts.values()))[1]
        names = next(iter(parts.values()))[1]
        batch = {name: np.empty((len(indices), self.sequence_length), array.dtype) for name, array in names.items()}
        for here, part in parts.values():
            for name, array in part.items():
                batch[name][here] = array
        return batch
