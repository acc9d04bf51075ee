"""Requests as trees: what several of them begin with is computed once.

The choices of a question share its text, and all questions of a task share their worked examples. Sorted by their ids,
requests that begin alike are neighbours; a run of them becomes a tree of tokens, laid out in one row in the order of a
depth-first walk. A token then sees those before it in the row whose subtree has not ended: `end[k] > q >= k`. So one
integer per key says who sees whom (`lm.evaluate.tree_attention`), and a row of unrelated texts is the special case
in which every token's subtree ends with its text.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.data.packing import best_fit
from lm.errors import UsageError

# From which share of a request on, what it has in common with the one before it is worth being in the same tree: larger
# trees leave more room at the rows' ends.
_WORTH = 0.25
_FEW = 8  # batches; among more, one that is not full is no great loss


@dataclasses.dataclass(frozen=True)
class Tree:
    """Tokens that share beginnings, in depth-first order, and what is asked of them.

    `tokens`, `depths` and `ends` are int64 [nodes]: ids, distance from the root (the position in its text), and the
    node after the last of its subtree. `parents` and `targets` are int64 [slots]: the probability of `target` after
    the text that ends in node `parent`. `slots` holds, per request (its number, its slots).
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    parents: np.ndarray
    targets: np.ndarray
    slots: list[tuple[int, np.ndarray]]


def truncated(context: Sequence[int], continuation: Sequence[int], max_length: int) -> np.ndarray:
    """Return the ids of a request, the context cut from the left to what the model can take, as the harness does.

    The last token is a target only, so `max_length + 1` ids fit.

    Raises:
      UsageError: there is no context, no continuation, or one that is longer than `max_length`.
    """
    if not len(context) or not len(continuation):
        raise UsageError("a request needs a context and a continuation of at least one token each.")
    if len(continuation) > max_length:
        raise UsageError(
            f"a continuation has {len(continuation)} tokens, more than the {max_length} that the model takes; "
            "raise --sequence-length where the model allows it."
        )
    return np.asarray([*context, *continuation][-(max_length + 1) :], np.int64)


class Forest:
    """Requests in the order in which those that begin alike are neighbours, to be cut into trees."""

    def __init__(self, ids: Sequence[np.ndarray], scored: Sequence[int], *, share: bool = True):
        """Sort them.

        Args:
          ids: each request's, at least two.
          scored: how many of each request's last ids are asked for.
          share: False: each request is a tree of its own.
        """
        # Big-endian bytes compare as the ids do.
        order = sorted(range(len(ids)), key=lambda number: ids[number].astype(">u4").tobytes())
        self._requests = [(number, ids[number], scored[number]) for number in order]
        inputs = [own[:-1] for _, own, _ in self._requests]
        self._common = [0, *map(_common, inputs[:-1], inputs[1:])] if share else [0] * len(inputs)

    def _cut(self, capacity: int) -> tuple[list[int], list[int]]:
        """Return where trees of at most `capacity` tokens begin, and their sizes."""
        starts: list[int] = []
        sizes: list[int] = []
        for i, ((_, ids, _), common) in enumerate(zip(self._requests, self._common, strict=True)):
            length = len(ids) - 1
            if not sizes or common < max(1, _WORTH * length) or sizes[-1] + length - common > capacity:
                starts.append(i)
                sizes.append(length)
            else:
                sizes[-1] += length - common
        return starts, sizes

    def num_rows(self, length: int) -> int:
        """Return the rows of `length` tokens that all trees fill."""
        return len(best_fit(np.asarray(self._cut(length)[1]), length)[1]) - 1

    def trees(self, capacity: int) -> list[Tree]:
        """Return trees of at most `capacity` tokens, which every request must fit."""
        starts, _ = self._cut(capacity)
        out = []
        for first, last in zip(starts, [*starts[1:], len(self._requests)], strict=True):
            tree = _Growing()
            for i in range(first, last):
                tree.add(*self._requests[i], self._common[i] if i > first else 0)
            out.append(tree.finished())
        return out


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many ids two texts have in common at their beginning."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class _Growing:
    """A tree while requests are added in sorted order."""

    def __init__(self):
        self._tokens: list[int] = []
        self._depths: list[int] = []
        self._ends: list[int] = []
        self._path: list[int] = []  # nodes of the newest request
        self._slot_of: dict[tuple[int, int], int] = {}  # (parent, target): asked once, however many ask
        self._requests: list[tuple[int, np.ndarray]] = []

    @property
    def size(self) -> int:
        return len(self._tokens)

    def add(self, number: int, ids: np.ndarray, scored: int, common: int) -> None:
        self._close(common)
        new = ids[common:-1].tolist()
        self._path += range(self.size, self.size + len(new))
        self._depths += range(common, common + len(new))
        self._ends += [0] * len(new)
        self._tokens += new
        parents, targets = self._path[-scored:], ids[-scored:].tolist()
        slots = [self._slot_of.setdefault(pair, len(self._slot_of)) for pair in zip(parents, targets, strict=True)]
        self._requests.append((number, np.asarray(slots, np.int64)))

    def _close(self, depth: int) -> None:
        """End the subtrees of the newest request's nodes from `depth` on."""
        for node in self._path[depth:]:
            self._ends[node] = self.size
        del self._path[depth:]

    def finished(self) -> Tree:
        self._close(0)
        pairs = np.asarray(list(self._slot_of), np.int64)
        arrays = (np.asarray(values, np.int64) for values in (self._tokens, self._depths, self._ends))
        return Tree(*arrays, pairs[:, 0], pairs[:, 1], self._requests)


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Rows for one run of the program; parts are what a device has, `[parts, …]`.

    Attributes:
      rows: `tokens_PRT`, `positions_PRT` and `ends_PRT`, int32; `ends` is 0 where there is padding.
      slots: `parent_PS` (a place among the part's R x T tokens) and `target_PS`, int32, 0 where unused.
      requests: per request its number and its slots among all P x S.
    """

    rows: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    requests: list[tuple[int, np.ndarray]]


def pack(trees: Sequence[Tree], *, parts: int, max_rows: int, length: int) -> list[PackedBatch]:
    """Lay trees out in batches of rows of `length` tokens, at most `max_rows` for each of `parts` devices.

    All batches have one shape: a few share the rows evenly, and the number of slots is rounded up, so that few programs
    are compiled.
    """
    sizes = np.asarray([len(tree.tokens) for tree in trees])
    order, offsets = best_fit(sizes, length)
    filled = [order[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
    count = -(-len(filled) // (parts * max_rows))
    rows = -(-len(filled) // (parts * count)) if count <= _FEW else max_rows
    # Rows of long texts ask for less than rows of short ones: shuffled, all parts ask for about as much.
    shuffled = np.random.default_rng(0).permutation(len(filled))
    of_parts = [[filled[i] for i in shuffled[first : first + rows]] for first in range(0, len(filled), rows)]
    asked = [sum(len(trees[t].targets) for row in part for t in row) for part in of_parts]
    S = rounded_up(max(asked))
    return [
        _packed(trees, of_parts[first : first + parts], parts, rows, length, S)
        for first in range(0, len(of_parts), parts)
    ]


def rounded_up(count: int) -> int:
    """Return the next of 64, 96, 128, 192, 256, 384, …: sizes of which few are needed."""
    power = max(6, (count - 1).bit_length())
    return 3 << (power - 2) if count <= 3 << (power - 2) and power > 6 else 1 << power


def _packed(trees: Sequence[Tree], of_parts: Sequence, parts: int, rows: int, length: int, S: int) -> PackedBatch:
    arrays = {name: np.zeros((parts, rows, length), np.int32) for name in ("tokens_PRT", "positions_PRT", "ends_PRT")}
    slots = {name: np.zeros((parts, S), np.int32) for name in ("parent_PS", "target_PS")}
    requests = []
    for part, its_rows in enumerate(of_parts):
        used = 0
        for row, its_trees in enumerate(its_rows):
            column = 0
            for tree in (trees[t] for t in its_trees):
                here = part, row, slice(column, column + len(tree.tokens))
                arrays["tokens_PRT"][here] = tree.tokens
                arrays["positions_PRT"][here] = tree.depths
                arrays["ends_PRT"][here] = tree.ends + column
                asked = part, slice(used, used + len(tree.targets))
                slots["parent_PS"][asked] = tree.parents + row * length + column
                slots["target_PS"][asked] = tree.targets
                requests += [(number, own + part * S + used) for number, own in tree.slots]
                used += len(tree.targets)
                column += len(tree.tokens)
    return PackedBatch(arrays, slots, requests)
