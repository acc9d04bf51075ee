"""From the runs of a pack plan to the arrays of a batch."""

import numpy as np

from lm.data.packing import Runs
from lm.data.shards import Shard

Batch = dict[str, np.ndarray]


def fill_rows(
    shard: Shard,
    runs: Runs,
    num_rows: int,
    row_length: int,
    token_bytes_V: np.ndarray,
    *,
    crosses_documents: bool = False,
    document_mask: bool = True,
    score_from: np.ndarray | None = None,
) -> Batch:
    """Build the rows of a batch.

    Args:
      shard: the token stream.
      runs: what fills the rows, each from column 0 on; the rest of a row is padding.
      num_rows: B.
      row_length: T.
      token_bytes_V: UTF-8 bytes per token id.
      crosses_documents: runs may hold several documents: look for their starts.
      document_mask: number the documents of a row; otherwise a row is one segment.
      score_from: int [runs], targets of a run before this one have weight 0; None: all count.

    Returns:
      Arrays [B, T]: `inputs_BT`, `targets_BT` (the next token of the stream), `segment_ids_BT` (1, 2, …
      per document within the row, 0 on padding), `positions_BT` (from 0 within each segment) and
      `target_bytes_BT` int32; `weights_BT` float32. A position of weight 0 has 0 target bytes.

    Raises:
      DamagedFileError: the shard's files were found to be damaged.
    """
    shard.check()
    # Flat index of every position in its stream: +1 from column to column, with a jump where a run begins.
    step_BT = np.ones((num_rows, row_length), np.int64)
    follows = np.zeros(len(runs.start), np.int64)  # where the run before in the same row ended
    same_row = runs.row[1:] == runs.row[:-1]
    follows[1:][same_row] = (runs.start + runs.length - 1)[:-1][same_row]
    step_BT[runs.row, runs.column] = runs.start - follows
    index_BT = np.cumsum(step_BT, axis=1)

    length_B = np.bincount(runs.row, runs.length, minlength=num_rows).astype(np.int64)
    columns_T = np.arange(row_length, dtype=np.int32)
    padding_BT = columns_T >= length_B[:, None] if (length_B < row_length).any() else None
    if padding_BT is not None:
        index_BT[padding_BT] = 0

    inputs_BT = shard.tokens[index_BT].astype(np.int32)
    # A target is the next column's input, except where a run ends.
    targets_BT = np.empty_like(inputs_BT)
    targets_BT[:, :-1] = inputs_BT[:, 1:]
    targets_BT[runs.row, runs.column + runs.length - 1] = shard.tokens[runs.start + runs.length]
    weights_BT = np.ones((num_rows, row_length), np.float32)
    if score_from is not None:
        _unweight(weights_BT, runs, score_from)
    target_bytes_BT = token_bytes_V.take(targets_BT, mode="clip")  # clip: padding's targets are not set

    if document_mask:
        opens_BT = np.zeros((num_rows, row_length), bool)
        opens_BT[runs.row, runs.column] = True
        if crosses_documents:
            row, column = _document_starts(shard.ends, runs)
            opens_BT[row, column] = True
        segment_ids_BT = np.cumsum(opens_BT, axis=1, dtype=np.int32)
        positions_BT = columns_T - np.maximum.accumulate(opens_BT * columns_T, axis=1)
    else:
        segment_ids_BT = np.ones((num_rows, row_length), np.int32)
        positions_BT = np.tile(columns_T, (num_rows, 1))
    if score_from is not None:
        target_bytes_BT[weights_BT == 0] = 0
    if padding_BT is not None:
        for array_BT in (inputs_BT, targets_BT, weights_BT, segment_ids_BT, positions_BT, target_bytes_BT):
            array_BT[padding_BT] = 0
    return {
        "inputs_BT": inputs_BT,
        "targets_BT": targets_BT,
        "weights_BT": weights_BT,
        "segment_ids_BT": segment_ids_BT,
        "positions_BT": positions_BT,
        "target_bytes_BT": target_bytes_BT,
    }


def _document_starts(ends: np.ndarray, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) of every document start strictly inside a run."""
    low = np.searchsorted(ends, runs.start.astype(ends.dtype), side="right")
    high = np.searchsorted(ends, (runs.start + runs.length).astype(ends.dtype), side="left")
    counts = high - low
    run = np.repeat(np.arange(len(counts)), counts)
    document = low[run] + np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    return runs.row[run], runs.column[run] + ends[document].astype(np.int64) - runs.start[run]


def _unweight(weights_BT: np.ndarray, runs: Runs, score_from: np.ndarray) -> None:
    run = np.repeat(np.arange(len(score_from)), score_from)
    offset = np.arange(len(run)) - np.repeat(np.cumsum(score_from) - score_from, score_from)
    weights_BT[runs.row[run], runs.column[run] + offset] = 0.0
