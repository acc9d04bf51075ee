"""Tasks: a stage's work, cut into pure functions over files, each done once."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lm import storage


class Report(Protocol):
    """Is told how many bytes of its input a task has read."""

    def __call__(self, done: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a task could not be done, in one line."""

    reason: str


Function = Callable[[Mapping[str, Any], str, Report], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of a stage.

    Attributes:
      out: path prefix of what it writes: files named `out + anything`; its result is `out + ".json"`.
      function: of a module's top level: `function(arguments, out, report) -> stats`. Writes files, each whole or not at
        all (`storage.write_atomic`), the same bytes for the same arguments and input files; stats are JSON.
      arguments: JSON; decides the output, together with the input files that it names and this package's code: after a
        change of that, begin in a new folder.
      inputs: keys of the tasks whose files it reads.
      size: bytes of input, for progress.
    """

    out: str
    function: Function
    arguments: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    size: int = 0

    @property
    def key(self) -> str:
        """Changes with all that decides the task's output, but for this package's code."""
        about = [f"{self.function.__module__}:{self.function.__qualname__}", self.arguments, self.inputs]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]

    def result(self) -> dict[str, Any] | None:
        """Return the stats of the task, if it is done."""
        path = self.out + ".json"
        if not storage.exists(path):
            return None
        content = storage.read_object(path, "key", "stats")
        return content["stats"] if content["key"] == self.key else None

    def run(self, report: Report = lambda done: None) -> dict[str, Any]:
        """Do the task and say that it is done; returns its stats."""
        storage.remove(self.out + ".json")  # of an earlier config, whose files are overwritten now
        stats = self.function(self.arguments, self.out, report)
        storage.write_atomic(self.out + ".json", json.dumps({"key": self.key, "stats": stats}) + "\n")
        return stats
