"""What is kept of each item, and the figures of a task that are made of it.

Items are lines of a file, written as they are scored: a run that is stopped continues after them, and two runs are
compared item by item (`read_items`).
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.errors import DamagedFileError
from lm.evaluate.core import centred
from lm.evaluate.formats import Item
from lm.evaluate.score import Score
from lm.storage import LineLog, exists

Record = dict[str, Any]

METRICS = ("acc", "acc_norm", "acc_bytes", "acc_per_token")
_FIELD = {name: name.replace("acc", "correct") for name in METRICS}


def item_record(item: Item, scores: Sequence[Score], tokens: Sequence[int]) -> Record:
    """Return an item's line: its scores and whether the right answer is the likeliest.

    Args:
      item: the question.
      scores: of its choices.
      tokens: of each choice's continuation.

    `correct` compares sums of log-probabilities; `correct_norm` divides them by the answers' characters, which is the
    harness's `acc_norm`, `correct_bytes` by their bytes, `correct_per_token` by their tokens, as DCLM does. With one
    continuation all four say whether greedy decoding gives it. Scores that are not finite answer nothing.
    """
    loglikelihoods = [score.loglikelihood for score in scores]
    is_finite = all(map(math.isfinite, loglikelihoods))  # argmax would choose the first NaN
    if len(item.choices) == 1:
        right = dict.fromkeys(_FIELD.values(), int(is_finite and scores[0].is_greedy))
    else:
        encoded = [choice.encode() for choice in item.choices]
        lengths = {
            "correct": np.ones(len(scores)),
            "correct_norm": np.array([max(len(choice), 1) for choice in item.choices]),
            "correct_bytes": np.array([max(len(choice), 1) for choice in encoded]),
            "correct_per_token": np.asarray(tokens),
        }
        right = {
            name: int(is_finite and np.argmax(np.array(loglikelihoods) / by) == item.gold)
            for name, by in lengths.items()
        }
    return {
        "id": item.id,
        "gold": item.gold,
        **right,
        "loglikelihoods": loglikelihoods,
        "greedy": [int(score.is_greedy) for score in scores],
        "gold_bytes": len((item.delimiter + item.choices[item.gold]).encode()),
    }


def read_items(path: str) -> dict[str, Record]:
    """Return an items file as id -> record (`item_record`), in the order of the file; a torn last line is left out.

    An absent file has none. On an object store it is the file's parts (`lm.storage.LineLog`).

    Raises:
      DamagedFileError: a line is no record of an item.
    """
    items: dict[str, Record] = {}
    for number, line in enumerate(LineLog(path).read(), start=1):
        if line:
            try:
                record = json.loads(line)
                items[record["id"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedFileError(
                    f'"{path}" is damaged: line {number} is no record of an item. Remove the file and score them anew.'
                ) from error
    return items


class ItemLog:
    """The items file of one task, appended to while the task runs."""

    def __init__(self, path: str, *, again: Collection[str] = ()):
        """Open it, keeping what is there except the items of these ids; raises as `read_items`."""
        self.path = path
        self._log = LineLog(path)
        self.done: dict[str, Record] = {id_: own for id_, own in read_items(path).items() if id_ not in again}
        if exists(path):  # a line that was torn must not stand before the next one
            self._log.replace(json.dumps(record) for record in self.done.values())

    def add(self, record: Record) -> None:
        """Queue an item's record."""
        self.done[record["id"]] = record
        self._log.append(json.dumps(record))

    def flush(self) -> None:
        """Write what is queued."""
        self._log.flush()


def summarize_items(
    records: Iterable[Mapping[str, Any]], *, is_choice: bool, baseline: float
) -> dict[str, float | None]:
    """Return a task's figures: accuracies with their standard errors, and bits per byte of the right answers.

    Args:
      records: of all items (`item_record`).
      is_choice: answers were chosen; else the one continuation is scored: `perplexity` is exp of its mean negative
        log-likelihood per item, as the harness says it.
      baseline: the accuracy of guessing, for `acc_centered`, which is made of `acc_per_token` (`lm.evaluate.core`).
    """
    records = list(records)
    figures: dict[str, float | None] = {}
    for name in METRICS if is_choice else METRICS[:1]:
        figures |= _mean(name, [record[_FIELD[name]] for record in records])
    gold = np.array([record["loglikelihoods"][record["gold"]] for record in records])
    if not is_choice:
        figures["perplexity"] = math.exp(min(-gold.mean(), 700))
    per_token = np.mean([record["correct_per_token"] for record in records])
    figures["acc_centered"] = centred(float(per_token), baseline)
    figures["bits_per_byte"] = float(-gold.sum() / sum(record["gold_bytes"] for record in records) / math.log(2))
    return figures


def _mean(name: str, values: Sequence[int]) -> dict[str, float | None]:
    """The mean and the standard error of it, from the sample's variance; None for one item."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {name: float(np.mean(values)), f"{name}_stderr": error}
