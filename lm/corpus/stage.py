"""Stages: lists of tasks done by an executor, those skipped that are done already."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lm import storage
from lm.corpus.task import Failure, Task
from lm.errors import LmError

_SHOWN = 5  # failures that an error spells out


class Executor(Protocol):
    """Runs tasks somewhere."""

    def run(
        self, tasks: Sequence[Task], moved: Callable[[int, int], None]
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """Yield (index, stats or Failure) as tasks end; tell `moved` (index, bytes done) of one that goes on."""


class Progress(Protocol):
    """Is told how far a stage has come."""

    def __call__(self, stage: str, tasks: tuple[int, int], size: tuple[int, int]) -> None:
        """`tasks`: how many are done, of how many; `size`: bytes of input read, of how many; done before not counted."""


class Stages:
    """Runs a build's stages one after the other, and knows how long each took."""

    def __init__(self, executor: Executor, progress: Progress | None = None):
        self._executor, self._progress = executor, progress or (lambda *_: None)
        self.seconds: dict[str, float] = {}  # by stage, of this process

    def run(self, name: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Do a stage's tasks and return their stats, in the tasks' order.

        All that can be done is done before an error is raised; the same command again does the rest.

        Raises:
          LmError: tasks failed; names them and why.
        """
        start = time.monotonic()
        results = [task.result() for task in tasks]
        left = [index for index, result in enumerate(results) if result is None]
        if left:
            for folder in {task.out.rpartition("/")[0] for task in (tasks[index] for index in left)}:
                storage.make_folder(folder)
            failures = self._do(name, [tasks[index] for index in left], left, results)
            if failures:
                raise _error(name, failures, len(tasks))
        self.seconds[name] = time.monotonic() - start
        return results

    def _do(self, name: str, tasks: list[Task], positions: list[int], results: list) -> list[tuple[Task, str]]:
        failures, done = [], [0] * len(tasks)
        ended, total = 0, sum(task.size for task in tasks)
        self._progress(name, (0, len(tasks)), (0, total))

        def moved(index: int, size: int) -> None:
            done[index] = min(size, tasks[index].size)  # some tasks count text and not bytes, or bytes decompressed
            self._progress(name, (ended, len(tasks)), (sum(done), total))

        for index, result in self._executor.run(tasks, moved):
            ended += 1
            if isinstance(result, Failure):
                failures.append((tasks[index], result.reason))
            else:
                results[positions[index]] = result
            moved(index, tasks[index].size)
        return failures


def _error(stage: str, failures: Sequence[tuple[Task, str]], total: int) -> LmError:
    failures = sorted(failures, key=lambda failure: failure[0].out)
    lines = [f"{_label(task)}: {reason}" for task, reason in failures[:_SHOWN]]
    more = f" … and {len(failures) - _SHOWN} more." if len(failures) > _SHOWN else ""
    kept = f" The other {total - len(failures)} of {total} tasks are done and kept." if total > len(failures) else ""
    return LmError(f"stage {stage}: {' '.join(lines)}{more}{kept} Mend what is named, and run the same command.")


def _label(task: Task) -> str:
    return task.arguments.get("label") or task.out.rpartition("/")[2]
