"""The training loader: `batch(step)` is a pure function of (manifest hash, seed, schedule, step)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.dataset import Dataset, open_data
from lm.data.mixture import Mixture, planned
from lm.data.packing import Runs, best_fit_plan, concat_plan, cut_runs
from lm.data.permutation import permute, round_keys
from lm.data.rows import Batch, fill_rows
from lm.data.stages import Stages
from lm.errors import ConfigError, UsageError


class Loader:
    """Batches of one split, by step. There is no iterator state: a checkpoint stores rows consumed.

    Rows are numbered over the run: row i of step s is number s·B + i. Number n is in epoch
    n // rows_per_epoch, and each epoch goes through all rows in an order of its own. Under a schedule of
    batch sizes and sequence lengths (`lm.data.stages.Stages`) the rows and their order stay the same; a step
    of a shorter length reads them in pieces.

    With a mixture of domains (`lm.data.mixture`) a row's number says which domain it is from and which of the domain's
    rows it is; each domain then has epochs of its own, in orders of its own. A change of weights begins with the first
    row that begins at its step or later.

    Attributes:
      dataset: the opened folder.
      shards: of the split.
      sequence_length: T of a whole row, the longest that a step reads.
      stages: each step's batch size (global) and sequence length.
      mixture: of domains; None: all rows of the split, in one order.
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
        mixture: Sequence[tuple[int, str, float]] = (),
        max_epochs: Sequence[tuple[str, float]] = (),
        num_steps: int | None = None,
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
          mixture: (first step, domain, weight); (): the manifest's, if the split is `train`.
          max_epochs: (domain, times that the run may read it), over those of the manifest.
          num_steps: of the run, for the caps; None: they are not looked at.

        Raises:
          UsageError: no such folder, or the split is empty.
          ConfigError: a mixture of domains that the data does not have, or that cannot fill the run.
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
        self.shards = self.dataset.shards(split)
        self._plans = [plans[packing](shard) for shard in self.shards]
        self._first_rows = np.cumsum([0, *(plan.num_rows for plan in self._plans)])
        self.rows_per_epoch = int(self._first_rows[-1])
        self.tokens_per_epoch = sum(plan.num_tokens for plan in self._plans)
        self.padding = 1 - self.tokens_per_epoch / (self.rows_per_epoch * sequence_length)
        self._domains: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # its shards; its rows before each, and all
        self.mixture = self._plan_mixture(mixture, dict(max_epochs), num_steps)

    @staticmethod
    def of_config(config: Config, data: Dataset, **changes: Any) -> "Loader":
        """Return the training batches of a config; `changes` as the constructor's."""
        options = {
            "sequence_length": config.data.sequence_length,
            "stages": config.data.schedule,
            "packing": config.data.packing,
            "document_mask": config.data.document_mask,
            "seed": config.seed,
            "mixture": config.data.mixture,
            "max_epochs": config.data.max_epochs,
            "num_steps": config.optimizer.num_steps,
        }
        return Loader(data, **{**options, **changes})

    def _plan_mixture(
        self, asked: Sequence[tuple[int, str, float]], max_epochs: dict[str, float], num_steps: int | None
    ) -> Mixture | None:
        default = (self.dataset.manifest.get("mixture") or {}) if self.split == "train" else {}
        if not (asked or max_epochs or default):
            return None
        domains = self.dataset.domains(self.split)
        if None in domains:
            field = "mixture" if asked else "max_epochs"
            lack = "shards without a domain" if any(domains) else "no domains"
            raise ConfigError(
                f'config.data.{field}: the data in "{self.dataset.folder}" has {lack}; leave it out, or build the data '
                "from sources with domains."
            )
        rows = dict.fromkeys(domains, 0)
        sizes = np.array([plan.num_rows for plan in self._plans])
        for domain in rows:
            own = np.flatnonzero(np.array(domains, object) == domain)
            self._domains[domain] = own, np.cumsum([0, *sizes[own]])
            rows[domain] = int(sizes[own].sum())

        def of_manifest(name: str) -> dict[str, float]:  # which may speak of domains that this split lacks
            return {domain: value for domain, value in default.get(name, {}).items() if domain in rows}

        weights: dict[int, dict[str, float]] = {}
        for step, domain, weight in sorted(asked):
            weights.setdefault(step, {})[domain] = weight
        weights = weights or {0: of_manifest("weights") or rows}
        return planned(
            [(self.rows_consumed(step), some) for step, some in weights.items()],
            rows,
            of_manifest("max_epochs") | max_epochs,
            None if num_steps is None else self.rows_consumed(num_steps),
            self.seed,
        )

    @property
    def mixture_hash(self) -> str | None:
        """What a resumed run must find unchanged beside the data; None: there is no mixture."""
        return self.mixture.hash if self.mixture else None

    def domain_epochs(self, step: int) -> dict[str, float]:
        """Return the epochs of each domain read before a step; {}: there is no mixture."""
        if self.mixture is None:
            return {}
        counts = self.mixture.counts(self.rows_consumed(step))
        return {domain: count / int(self._domains[domain][1][-1]) for domain, count in counts.items()}

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
        for shard in self.shards:
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
        batch = self._rows(*self._pieces(step, rows))
        return batch if columns is None else {name: array[:, columns] for name, array in batch.items()}

    def runs(self, step: int, rows: Any = None) -> Iterator[tuple[int, np.ndarray, Runs]]:
        """Yield (shard, rows, runs) for every shard that the step's batch reads: what fills which of its rows.

        Args:
          step, rows: as of `batch`.

        Yields:
          The shard's number in the split, which of the rows asked for it fills, and their runs in its stream
          (`Runs.row` is an index into them).
        """
        yield from self._located(*self._pieces(step, rows))

    def _pieces(self, step: int, rows: Any) -> tuple[np.ndarray, np.ndarray, int]:
        """Return of a step's rows: their indices in the split, the columns at which they begin there, their length."""
        stage = self.stages.at(step)
        length = stage.sequence_length
        pieces = self.stages.position(step) // length + np.arange(stage.batch_size)
        numbers, parts = np.divmod(pieces if rows is None else pieces[rows], self.sequence_length // length)
        return self.row_indices(numbers), parts * length, length

    def numbered_rows(self, numbers: np.ndarray) -> Batch:
        """Return the whole rows with these numbers in the run's order, which knows no batch size."""
        return self._rows(self.row_indices(numbers), np.zeros(len(numbers), np.int64), self.sequence_length)

    def row_indices(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of the split's rows the run reads at these numbers: int64, below `rows_per_epoch`."""
        numbers = np.asarray(numbers, np.int64)
        if self.mixture is None:
            return self._shuffled(numbers, self.rows_per_epoch, self.seed)
        domain_of, place_of = self.mixture.places(numbers)
        indices = np.empty_like(numbers)
        for number in np.unique(domain_of).tolist():
            here, domain = domain_of == number, self.mixture.domains[number]
            shards, firsts = self._domains[domain]
            own = self._shuffled(place_of[here], int(firsts[-1]), self.seed, "domain", domain)
            shard = np.searchsorted(firsts, own, side="right") - 1
            indices[here] = self._first_rows[shards[shard]] + own - firsts[shard]
        return indices

    @staticmethod
    def _shuffled(numbers: np.ndarray, size: int, *key: int | str) -> np.ndarray:
        """Return which of `size` rows are read at these numbers, each epoch in an order of its own."""
        epochs, places = np.divmod(numbers, size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            indices[now] = permute(places[now], size, round_keys(*key, epoch))
        return indices

    def _located(self, indices: np.ndarray, columns: np.ndarray, length: int) -> Iterator[tuple[int, np.ndarray, Runs]]:
        shard_of_row = np.searchsorted(self._first_rows, indices, side="right") - 1
        for number in np.unique(shard_of_row).tolist():
            here = np.flatnonzero(shard_of_row == number)
            runs = self._plans[number].runs(indices[here] - self._first_rows[number])
            yield number, here, runs if length == self.sequence_length else cut_runs(runs, columns[here], length)

    def _rows(self, indices: np.ndarray, columns: np.ndarray, length: int) -> Batch:
        """Return the pieces of `length` tokens that begin at these columns of the rows with these indices."""
        parts = {
            number: (
                here,
                fill_rows(
                    self.shards[number],
                    runs,
                    len(here),
                    length,
                    self.token_bytes,
                    crosses_documents=self._plans[number].crosses_documents,
                    document_mask=self._document_mask,
                ),
            )
            for number, here, runs in self._located(indices, columns, length)
        }
        if len(parts) == 1:
            return next(iter(parts.values()))[1]
        names = next(iter(parts.values()))[1]
        batch = {name: np.empty((len(indices), length), array.dtype) for name, array in names.items()}
        for here, part in parts.values():
            for name, array in part.items():
                batch[name][here] = array
        return batch
