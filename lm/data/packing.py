"""Pack plans: which stretches of a token stream fill which row.

A row is one or more runs `(start, length)`. `concat` cuts the stream into consecutive rows, so documents
are split where a row ends. `best_fit` splits only documents longer than a row (Ding et al. 2024,
"Fewer Truncations Improve Language Modeling") and pads what is left over.
"""

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of some rows, ordered by row: int64 [runs] each.

    Attributes:
      row: which of the rows asked for.
      column: where in the row the run begins.
      start: its first token's position in the stream.
      length: its tokens.
    """

    row: np.ndarray
    column: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Plan(Protocol):
    """What the loader asks of a pack plan."""

    num_rows: int
    num_tokens: int  # tokens in all rows, padding not counted
    crosses_documents: bool  # a run may hold several documents

    def runs(self, rows: np.ndarray) -> Runs:
        """Return the runs of the rows with these indices."""


@dataclasses.dataclass(frozen=True)
class ConcatPlan:
    """Row r is the stream's tokens r·T to (r+1)·T; the last row is padded. Takes no memory."""

    num_tokens: int
    row_length: int  # T
    crosses_documents: bool = True

    @property
    def num_rows(self) -> int:
        """Rows, the last partial one counted."""
        return -(-self.num_tokens // self.row_length)

    def runs(self, rows: np.ndarray) -> Runs:
        """Return one run per row."""
        start = np.asarray(rows, np.int64) * self.row_length
        length = np.minimum(self.row_length, self.num_tokens - start)
        return Runs(np.arange(len(start)), np.zeros(len(start), np.int64), start, length)


@dataclasses.dataclass(frozen=True)
class ListedPlan:
    """Row r holds items `order[offsets[r]:offsets[r+1]]`, each the run `(starts[i], lengths[i])`."""

    starts: np.ndarray  # int64 [items]
    lengths: np.ndarray  # int64 [items]
    order: np.ndarray  # int64 [items]
    offsets: np.ndarray  # int64 [rows + 1]
    crosses_documents: bool = False

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, padding not counted."""
        return int(self.lengths.sum())

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (index into `rows`, item) of every item in these rows."""
        rows = np.asarray(rows, np.int64)
        counts = self.offsets[rows + 1] - self.offsets[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self.order[self.offsets[rows][row] + within]

    def runs(self, rows: np.ndarray) -> Runs:
        """Return a run per item."""
        row, item = self.items(rows)
        start, length = self.starts[item], self.lengths[item]
        before = np.cumsum(length) - length  # tokens of all runs before this one
        first = np.searchsorted(row, row)  # the first run of the same row
        return Runs(row, before - before[first], start, length)


def concat_plan(num_tokens: int, row_length: int) -> ConcatPlan:
    """Plan consecutive rows of `row_length` (T) over a stream."""
    return ConcatPlan(num_tokens, row_length)


def best_fit_plan(doc_starts: np.ndarray, doc_lengths: np.ndarray, row_length: int) -> ListedPlan:
    """Plan rows of at most `row_length` (T) tokens: documents cut into pieces of at most T, packed best-fit."""
    starts, lengths = cut_documents(doc_starts, doc_lengths, row_length)
    order, offsets = best_fit(lengths, row_length)
    return ListedPlan(starts, lengths, order, offsets)


def cut_runs(runs: Runs, columns: np.ndarray, length: int) -> Runs:
    """Return what of some rows' runs lies in `length` columns from `columns` (one per row) on, columns from 0."""
    begin = np.maximum(runs.column, columns[runs.row])
    end = np.minimum(runs.column + runs.length, columns[runs.row] + length)
    kept = begin < end
    row, begin, end = runs.row[kept], begin[kept], end[kept]
    return Runs(row, begin - columns[row], runs.start[kept] + begin - runs.column[kept], end - begin)


def cut_documents(doc_starts: np.ndarray, doc_lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into consecutive pieces of `size` tokens and a remainder; return (starts, lengths)."""
    doc_starts, doc_lengths = np.asarray(doc_starts, np.int64), np.asarray(doc_lengths, np.int64)
    counts = -(-doc_lengths // size)
    offset = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    return np.repeat(doc_starts, counts) + offset, np.minimum(size, np.repeat(doc_lengths, counts) - offset)


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing bin packing (Johnson 1973).

    Takes items from the longest to the shortest and puts each into the fullest row that has room. All
    items of one length, and all rows with the same room, are handled at once.

    Args:
      lengths: int [items], each from 1 to `capacity`.
      capacity: T, of a row.

    Returns:
      (order, offsets): row r holds items `order[offsets[r]:offsets[r+1]]`.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    room_dtype = np.uint16 if capacity < 2**16 else np.uint32  # 16 bits: numpy sorts by radix
    descending = np.argsort((capacity - lengths).astype(room_dtype), kind="stable")
    row_of_item = np.empty(len(lengths), np.int64)  # in descending order
    counts = np.bincount(lengths, minlength=capacity + 1)
    rows_by_room: dict[int, list[np.ndarray]] = {}
    occupied = 0  # bit s is set where some row has room s
    num_rows = position = 0

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = occupied >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1  # the least room that suffices
                rows = np.concatenate(rows_by_room.pop(room))
                occupied ^= 1 << room
            else:
                room = capacity
                new = -(-left // (capacity // length))
                rows = np.arange(num_rows, num_rows + new)
                num_rows += new
            # A row that took one such item is now the fullest that fits, so it takes as many as it can.
            each = room // length
            full = min(len(rows), left // each)
            taken = full * each
            row_of_item[position : position + taken] = np.repeat(rows[:full], each)
            changed = [(rows[:full], room - each * length)]
            if full < len(rows):
                rest = min(left - taken, each)
                row_of_item[position + taken : position + taken + rest] = rows[full]
                taken += rest
                changed += [(rows[full : full + 1], room - rest * length), (rows[full + 1 :], room)]
            for some, space in changed:
                if len(some) and space:
                    rows_by_room.setdefault(space, []).append(some)
                    occupied |= 1 << space
            position += taken
            left -= taken

    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of_item, minlength=num_rows))])
    return descending[np.argsort(row_of_item, kind="stable")], offsets


def padding_fraction(plan: Plan, row_length: int) -> float:
    """Return the share of a plan's positions that are padding."""
    return 1 - plan.num_tokens / (plan.num_rows * row_length) if plan.num_rows else 0.0
