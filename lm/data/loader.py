"""The training loader: `batch(step)` is a pure function of (manifest hash, seed, schedule, step)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data.dataset import Dataset, open_data
from lm.data.packing import best_fit_plan, concat_plan, cut_runs
from lm.data.permutation import permute, round_keys
from lm.data.rows import Batch, fill_rows
from lm.data.stages import Stages
from lm.errors import UsageError


class Loader:
    """Batches of one split, by step. There is no iterator state: a checkpoint stores rows consumed.

    Rows are numbered over the run: row i of step s is number s·B + i. Number n is in epoch
    n // rows_per_epoch, and each epoch goes through all rows in an order of its own. Under a schedule of
    batch sizes and sequence lengths (`lm.data.stages.Stages`) the rows and their order stay the same; a step
    of a shorter length reads them in pieces.

    Attributes:
      dataset: the opened folder.
      sequence_length: T of a whole row, the longest that a step reads.
      stages: each step's batch size (global) and sequence length.
      rows_per_epoch: rows in the split.
      tokens_per_epoch: targets of weight 1 in one epoch.
      padding: the share of positions that are padding.
    """

    def __init__(
        self,
        data: Dataset | str,
        *,
        sequence_length: int,
        batch_size: int | None = None,
        stages: Sequence[tuple[int, int, int]] = (),
        split: str = "train",
        packing: str = "concat",
        document_mask: bool = True,
        seed: int = 0,
    ):
        """Open a split and plan its rows.

        Args:
          data: a prepared folder or an opened one.
          sequence_length: T.
          batch_size: B, rows per step over all hosts; not used where `stages` are given.
          stages: (first step, B, T of the step) of every stage, the first at step 0; each T divides
            `sequence_length`.
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
        self.sequence_length = sequence_length
        self.stages = Stages(stages or ((0, batch_size, sequence_length),), sequence_length)
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

    def check(self) -> None:
        """Wait until the shards are verified; raises DamagedFileError if one is damaged."""
        for shard in self._shards:
            shard.check(wait=True)

    def rows_consumed(self, step: int) -> int:
        """Rows read before a step, the one that is partly read counted."""
        return -(-self.stages.position(step) // self.sequence_length)

    def epoch(self, step: int) -> float:
        """Epochs read before a step."""
        return self.stages.position(step) / self.sequence_length / self.rows_per_epoch

    def batch(self, step: int, rows: Any = None, columns: Any = None) -> Batch:
        """Return the step's batch, or the part of it that a host needs.

        Args:
          step: from 0.
          rows: slice or indices into the global batch's B rows; None: all.
          columns: slice or indices into its T columns; None: all. B and T are those of the step's stage.

        Returns:
          `inputs_BT`, `targets_BT`, `segment_ids_BT`, `positions_BT`, `target_bytes_BT` int32 and
          `weights_BT` float32, as `lm.data.rows.fill_rows` describes.
        """
        stage = self.stages.at(step)
        length = stage.sequence_length
        pieces = self.stages.position(step) // length + np.arange(stage.batch_size)
        numbers, parts = np.divmod(pieces if rows is None else pieces[rows], self.sequence_length // length)
        batch = self._rows(self.row_indices(numbers), parts * length, length)
        return batch if columns is None else {name: array[:, columns] for name, array in batch.items()}

    def numbered_rows(self, numbers: np.ndarray) -> Batch:
        """Return the whole rows with these numbers in the run's order, which knows no batch size."""
        return self._rows(self.row_indices(numbers), np.zeros(len(numbers), np.int64), self.sequence_length)

    def row_indices(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of the split's rows the run reads at these numbers: int64, below `rows_per_epoch`."""
        epochs, places = np.divmod(np.asarray(numbers, np.int64), self.rows_per_epoch)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            indices[now] = permute(places[now], self.rows_per_epoch, round_keys(self.seed, epoch))
        return indices

    def _rows(self, indices: np.ndarray, columns: np.ndarray, length: int) -> Batch:
        """Return the pieces of `length` tokens that begin at these columns of the rows with these indices."""
        shard_of_row = np.searchsorted(self._first_rows, indices, side="right") - 1
        parts = {}
        for number in np.unique(shard_of_row).tolist():
            here = np.flatnonzero(shard_of_row == number)
            plan = self._plans[number]
            runs = plan.runs(indices[here] - self._first_rows[number])
            parts[number] = (
                here,
                fill_rows(
                    self._shards[number],
                    runs if length == self.sequence_length else cut_runs(runs, columns[here], length),
                    len(here),
                    length,
                    self.token_bytes,
                    crosses_documents=plan.crosses_documents,
                    document_mask=self._document_mask,
                ),
            )
        if len(parts) == 1:
            return next(iter(parts.values()))[1]
        names = next(iter(parts.values()))[1]
        batch = {name: np.empty((len(indices), length), array.dtype) for name, array in names.items()}
        for here, part in parts.values():
            for name, array in part.items():
                batch[name][here] = array
        return batch
