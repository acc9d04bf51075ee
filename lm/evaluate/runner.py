"""Tasks from beginning to end: encode, score, keep every item, make the figures."""

import time
from collections.abc import Callable
from typing import Any

from lm.errors import Preempted
from lm.evaluate.records import METRICS, ItemLog, Record, item_record, summarize_items
from lm.evaluate.score import Score, Scorer
from lm.evaluate.tasks import Encoder, Task
from lm.storage import is_remote

_ITEMS = 2000  # encoded at a time, packed together and done before the next
_FLUSH_SECONDS = {False: 1.0, True: 30.0}  # on an object store each flush is a new file


def run_task(
    scorer: Scorer,
    params: Any,
    encode: Encoder,
    task: Task,
    log: ItemLog | None = None,
    *,
    stop: Callable[[], str | None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Score the items of a task that are not done yet and return the figures of all (`summarize_items`).

    Args:
      scorer: of the model.
      params: its parameters.
      encode: texts to ids.
      task: the items.
      log: where items are kept, and which are done; None: they are not kept.
      stop: asked after every batch; a reason ends the run.
      progress: called with the items done and all there are.

    Raises:
      Preempted: `stop` gave a reason; the items done are kept.
    """
    run = _Run(task, log, progress)
    for first in range(0, len(run.todo), _ITEMS):
        if reason := stop():
            raise Preempted(run.stopped(reason))
        items = run.todo[first : first + _ITEMS]
        requests = [[encode(*pair) for pair in item.pairs()] for item in items]
        owners = [(i, choice) for i, own in enumerate(requests) for choice in range(len(own))]
        scores: list[list[Score | None]] = [[None] * len(own) for own in requests]
        try:
            for batch in scorer.stream(params, [request for own in requests for request in own]):
                for number, score in batch:
                    i, choice = owners[number]
                    scores[i][choice] = score
                    if None not in scores[i]:
                        run.add(item_record(items[i], scores[i], [len(own) for _, own in requests[i]]))
                run.after_batch()
                if (reason := stop()) and not run.is_over:
                    raise Preempted(run.stopped(reason))
        finally:
            run.flush()
    records = [run.done[item.id] for item in task.items]
    return summarize_items(records, is_choice=task.is_choice, baseline=task.baseline)


class _Run:
    """The records of a task while it runs."""

    def __init__(self, task: Task, log: ItemLog | None, progress: Callable[[int, int], None]):
        self._task, self._log, self._progress = task, log, progress
        self.done = {} if log is None else log.done
        self.todo = [item for item in task.items if item.id not in self.done]
        self._left = len(self.todo)
        self._pause = _FLUSH_SECONDS[log is not None and is_remote(log.path)]
        self._flushed = time.monotonic()

    @property
    def is_over(self) -> bool:
        return not self._left

    def add(self, record: Record) -> None:
        self._left -= 1
        if self._log is None:
            self.done[record["id"]] = record
        else:
            self._log.add(record)

    def after_batch(self) -> None:
        self._progress(len(self._task.items) - self._left, len(self._task.items))
        if time.monotonic() - self._flushed > self._pause:
            self.flush()

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()
        self._flushed = time.monotonic()

    def stopped(self, reason: str) -> str:
        kept = f"{len(self._task.items) - self._left} of {len(self._task.items)} items of {self._task.name}"
        where = f'kept in "{self._log.path}"' if self._log else "done, and not kept"
        return f"stopped by {reason}: {kept} are {where}; run the same command to continue."


def harness_results(task: Task, figures: dict[str, float], **about: Any) -> dict[str, Any]:
    """Return a task's figures in the shape of lm-evaluation-harness's results file.

    Args:
      task: what was run.
      figures: of `run_task`.
      about: what else the `config` part says (the model, its step).
    """
    results = {"alias": task.name} | {f"{name},none": value for name, value in figures.items()}
    higher = dict.fromkeys((*METRICS, "acc_centered"), True) | dict.fromkeys(("perplexity", "bits_per_byte"), False)
    return {
        "results": {task.name: results},
        "configs": {
            task.name: {
                "task": task.name,
                "dataset_path": task.path,
                "output_type": "multiple_choice" if task.is_choice else "loglikelihood",
                "num_fewshot": task.num_fewshot,
                "metadata": {"fingerprint": task.fingerprint, "baseline": task.baseline},
            }
        },
        "versions": {task.name: task.fingerprint},
        "n-shot": {task.name: task.num_fewshot},
        "higher_is_better": {task.name: {name: better for name, better in higher.items() if name in figures}},
        "n-samples": {task.name: {"original": task.total, "effective": len(task.items)}},
        "config": about,
    }
