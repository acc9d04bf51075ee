"""Writing checkpoints with Orbax, asynchronous and atomic, and restoring them onto any mesh.

Orbax writes; `CheckpointReader` reads, straight onto each device's own part of each array, so
that a file that is not whole is one clear line with the array's path in it. On several hosts all save and
restore together, in one folder that all see.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lm import hosts
from lm.checkpoint.layout import ARRAY_ITEMS, JSON_ITEMS, finished_steps, read_newest, unfinished
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.restore import restore_tree
from lm.checkpoint.writer import Writer
from lm.errors import DamagedFileError, LmError
from lm.storage import filesystem, is_remote, join, make_folder, of_store


@dataclasses.dataclass(frozen=True)
class Restored:
    """One checkpoint's content."""

    step: int
    items: Mapping[str, Any]  # array trees by item name
    data: Mapping[str, Any]  # rows consumed, the manifest's hash
    meta: Mapping[str, Any]  # step, fingerprint


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: holds one folder per step.
      keep: newest checkpoints that stay.
      warn: gets one line about each checkpoint that is passed over.
    """

    def __init__(self, folder: str, *, keep: int = 2, warn: Callable[[str], None] = lambda line: None):
        self.folder = folder
        self._keep = keep
        self._warn = warn
        self._writer = None
        self._saved = -1  # the newest step that this process wrote

    def steps(self) -> list[int]:
        """Return the steps that can be restored, oldest first."""
        return finished_steps(self.folder)

    def shared_steps(self) -> list[int]:
        """Return `steps` as the first host sees them: a network disk may show another one less."""
        return json.loads(hosts.gather(json.dumps(self.steps()))[0])

    def save(self, step: int, items: Mapping[str, Any], *, data: Mapping, meta: Mapping) -> None:
        """Start writing a checkpoint; arrays are copied before this returns, files follow in the background.

        Raises:
          LmError: the folder cannot be written, or the previous background save failed.
        """
        self.wait()
        make_folder(self.folder)
        arrays = {name: items[name] for name in ARRAY_ITEMS if jax.tree.leaves(items.get(name))}
        if self._writer is None:
            self._writer = Writer(self.folder, ARRAY_ITEMS + JSON_ITEMS)
        try:
            self._writer.save(join(self.folder, str(step)), arrays, {"data": data, "meta": meta})
        except (OSError, ValueError) as error:
            raise LmError(f'cannot write checkpoint "{join(self.folder, str(step))}": {_one_line(error)}') from error
        self._saved = step

    def wait(self) -> None:
        """Wait for the background save, then remove checkpoints beyond `keep`.

        Raises:
          LmError: the save failed; the checkpoints before it are untouched.
        """
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except LmError:  # a signal's Preempted
            raise
        except Exception as error:  # Orbax raises whatever its worker thread raised
            raise LmError(f'cannot write a checkpoint in "{self.folder}": {_one_line(error)}') from error
        if hosts.is_first():
            # Later steps than ours are damaged ones that were passed over: they must not displace good ones.
            for step in [step for step in self.steps() if step <= self._saved][: -self._keep]:
                self._remove(join(self.folder, str(step)))

    def close(self) -> None:
        """Finish the background save and stop its threads."""
        if self._writer is not None:
            self.wait()
            self._writer.close()
            self._writer = None

    def discard_unfinished(self) -> None:
        """Remove checkpoints whose writing was cut off, with one line for each. For the run's own processes only."""

        def discard() -> None:
            for path in unfinished(self.folder):
                self._warn(f'ignoring half-written checkpoint "{path}"')
                self._remove(path)

        hosts.first_alone(discard)

    def restore(self, targets: Mapping[str, Any], *, step: int | None = None) -> Restored:
        """Restore items onto the shardings of their targets.

        Args:
          targets: item name -> tree of `jax.ShapeDtypeStruct` with shardings; other items are not read.
            A part of an item has a name too: `extra/ema`.
          step: None: the newest that can be read; damaged ones are passed over with a warning.

        Raises:
          UsageError: there is no checkpoint, or not the step asked for.
          DamagedFileError: the step asked for, or every one there is, cannot be read.
        """
        steps = self.shared_steps()
        return read_newest(self.folder, step, lambda number: self._restore(targets, number), self._warn, steps)

    def _restore(self, targets: Mapping[str, Any], step: int) -> Restored:
        """Restore one step on all hosts, or on none: each reads its own parts, and only one may be damaged."""
        restored, problem = None, ""
        try:
            restored = self._read(targets, step)
        except DamagedFileError as error:
            problem = str(error)
        problems = [text for text in hosts.gather(problem) if text]
        if problems:
            raise DamagedFileError(problem or problems[0])
        return restored

    def _read(self, targets: Mapping[str, Any], step: int) -> Restored:
        reader = CheckpointReader(join(self.folder, str(step)))
        data, meta = reader.json("data"), reader.json("meta")
        return Restored(step, {name: restore_tree(reader, name, tree) for name, tree in targets.items()}, data, meta)

    def _remove(self, path: str) -> None:
        if is_remote(path):
            with of_store(path, "remove"):
                filesystem(path).rm(path, recursive=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
