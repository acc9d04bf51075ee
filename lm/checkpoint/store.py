"""Writing checkpoints with Orbax, asynchronous and atomic, and restoring them onto any mesh.

Orbax writes; `CheckpointReader` reads, straight onto each device's own part of each array, so
that a file that is not whole is one clear line with the array's path in it. Orbax returns flipped bits without a word,
so every array is saved with its checksum (`lm/checkpoint/checksum.py`) and checked on the devices that it is restored
to. On several hosts all save and restore together, in one folder that all see.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from lm import hosts
from lm.checkpoint.checksum import digest, tree_checksums
from lm.checkpoint.layout import (
    ARRAY_ITEMS,
    JSON_ITEMS,
    finished_steps,
    read_newest,
    strays,
    superfluous,
    unfinished,
)
from lm.checkpoint.ranking import ranked
from lm.checkpoint.reader import CheckpointReader
from lm.checkpoint.restore import restore_tree
from lm.checkpoint.writer import Writer, check_room_for_copy, uploads
from lm.errors import ConfigError, DamagedFileError, LmError, Preempted, UsageError
from lm.storage import exists, filesystem, is_remote, join, make_folder, of_store

SETTLE_SECONDS = 0.5  # in which the other writes of a save that failed end; Orbax does not wait for them
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Restored:
    """One checkpoint's content."""

    step: int
    items: Mapping[str, Any]  # array trees by item name
    data: Mapping[str, Any]  # rows consumed, the manifest's hash
    meta: Mapping[str, Any]  # step, fingerprint, the validation's bits per byte


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: holds one folder per step.
      keep: newest checkpoints that stay.
      keep_every: checkpoints of multiples of this step stay too; None: there are none.
      keep_best: so many with the fewest validation bits per byte stay too, of those that were evaluated.
      verify: check arrays against their checksums when they are restored.
      fingerprint: of the run; what another one saved is not restored. None: anything is.
      warn: gets one line about each checkpoint that is passed over, set aside or removed before its time.
    """

    def __init__(
        self,
        folder: str,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        keep_best: int = 0,
        verify: bool = True,
        fingerprint: str | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ):
        self.folder = folder
        self._keep, self._keep_every, self._keep_best = keep, keep_every, keep_best
        self._verify, self._fingerprint, self._warn = verify, fingerprint, warn
        self._writer = None
        self._writing: int | None = None  # the step whose files are being written
        self._has_failed = False  # a save of this process
        self._good: int | None = None  # the newest step that this process knows to be whole

    def steps(self) -> list[int]:
        """Return the steps that can be restored, oldest first."""
        return finished_steps(self.folder)

    def shared_steps(self) -> list[int]:
        """Return `steps` as the first host sees them: a network disk may show another one less."""
        return json.loads(hosts.gather(json.dumps(self.steps()))[0])

    def save(self, step: int, items: Mapping[str, Any], *, data: Mapping, meta: Mapping) -> None:
        """Start writing a checkpoint; arrays are copied before this returns, files follow in the background.

        Checkpoints of this step and of later ones are set aside: the run went back to before them.

        Args:
          step: of the state.
          items: array trees by item name; empty ones are left out.
          data, meta: JSON. `meta` may have a `bits_per_byte`, for `keep_best`.

        Raises:
          LmError: the folder cannot be written, has no room, or the previous background save failed; on all hosts
            if on one.
        """
        arrays = {name: items[name] for name in ARRAY_ITEMS if jax.tree.leaves(items.get(name))}
        self._together(lambda: self._prepare(step, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))))
        meta = {**meta, "checksums": tree_checksums(arrays)}
        meta["digest"] = digest(data, meta)
        if self._writer is None:
            self._writer = Writer(self.folder, ARRAY_ITEMS + JSON_ITEMS)
        self._writing = step
        try:
            self._writer.save(self._path(step), arrays, {"data": data, "meta": meta})
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def failure(self) -> str | None:
        """Return why the background save failed, once, as soon as it has; never waits."""
        if self._writing is None:
            return None
        try:
            self._writer.check_for_errors()
        except Preempted:  # a second Ctrl-C
            raise
        except Exception as error:  # Orbax raises whatever its worker thread raised
            return str(self._failed(error))
        return None

    def wait(self) -> None:
        """Wait for the background save, then remove checkpoints that need not stay; a warning if that fails.

        Raises:
          LmError: the save failed; the checkpoints before it are untouched.
        """
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
        except Preempted:
            raise
        except Exception as error:
            raise self._failed(error) from error
        if self._writing is not None:
            self._good, self._writing = self._writing, None
            if hosts.is_first():
                self._remove_superfluous()

    def finish(self) -> None:
        """`wait`, on all hosts: if the save failed on one, all raise."""
        self._together(self.wait)

    def close(self) -> None:
        """Finish the background save and stop its threads; raises as `wait`."""
        if self._writer is not None:
            self.wait()
            self._writer.close()
            self._writer = None
            self._settle()

    def start_writing(self) -> None:
        """Clear the folder of what was left half-written, with one line for each; for the run's own processes only.

        Raises:
          LmError: there is a folder, and it cannot be written.
          UsageError: several hosts would write to an object store that Orbax does not know: each has its own disk.
        """
        if uploads(self.folder) and jax.process_count() > 1:
            raise UsageError(
                f'several hosts cannot save in "{self.folder}" together: use gs:// or a disk that all see.'
            )

        def start() -> None:
            if exists(self.folder):
                make_folder(self.folder)
            for path in unfinished(self.folder):
                self._warn(f'ignoring half-written checkpoint "{path}"')
                self._remove(path)
            for path in strays(self.folder):
                self._warn(f'ignoring "{path}", which holds no checkpoint')

        self._together(lambda: start() if hosts.is_first() else None)

    def restore(self, targets: Mapping[str, Any], *, step: int | None = None, set_aside: bool = False) -> Restored:
        """Restore items onto the shardings of their targets.

        Args:
          targets: item name -> tree of `jax.ShapeDtypeStruct` with shardings; other items are not read.
            A part of an item has a name too: `extra/ema`.
          step: None: the newest that can be read; damaged ones are passed over with a warning.
          set_aside: rename damaged ones to `<step>.damaged` once a good one is restored. For the run's own processes.

        Raises:
          UsageError: there is no checkpoint, or not the step asked for.
          DamagedFileError: the step asked for, or every one there is, cannot be read.
          ConfigError: the arrays are not the targets': one too many or too few, or of another shape or type.
        """
        damaged: dict[int, str] = {}

        def read(number: int) -> Restored:
            try:
                return self._restore(targets, number)
            except DamagedFileError as error:
                damaged[number] = str(error)  # the error itself would keep the arrays that were read
                raise

        lines: list[str] = []
        steps = self.shared_steps()
        try:
            restored = read_newest(self.folder, step, read, lines.append if set_aside else self._warn, steps)
        except DamagedFileError:
            for line in lines:
                self._warn(line)
            raise
        self._good = restored.step

        def rename() -> None:
            for number, problem in damaged.items():
                name = self._set_aside(number, "damaged")
                self._warn(f'passing over a damaged checkpoint, set aside as "{name}": {problem}')

        if set_aside:
            self._together(lambda: rename() if hosts.is_first() else None)
        return restored

    def _restore(self, targets: Mapping[str, Any], step: int) -> Restored:
        """Restore one step on all hosts, or on none: each reads its own parts, and only one may be damaged."""
        restored, reader = self._together(lambda: self._read(targets, step))
        if self._verify and reader.checksums is not None:
            for path, checksum in tree_checksums(restored.items).items():
                reader.check(path, checksum)
        return restored

    def _read(self, targets: Mapping[str, Any], step: int) -> tuple[Restored, CheckpointReader]:
        """Return one step's content as it is stored, not yet verified, and its reader."""
        reader = CheckpointReader(self._path(step))
        data, meta = reader.json("data"), reader.json("meta")
        other = meta.get("fingerprint", self._fingerprint)
        if self._fingerprint is not None and other != self._fingerprint:
            raise DamagedFileError(
                f'checkpoint "{self._path(step)}" is of another run (fingerprint {str(other)[:12]}, here '
                f"{self._fingerprint[:12]})"
            )
        checksums = reader.checksums if self._verify else None
        if checksums is None and self._verify:
            self._warn(f'checkpoint "{self._path(step)}" has no checksums: what it holds cannot be verified')
        for item in {name.partition("/")[0] for name in targets} if checksums else ():
            saved = {path for path in checksums if path.startswith(f"{item}/")}
            different = saved ^ {f"{item}/{path}" for path in reader.leaves(item)} if saved else ()
            if different:
                raise DamagedFileError(
                    f'checkpoint "{self._path(step)}" is damaged: it lists other arrays than were saved '
                    f"({min(different)})"
                )
        items = {name: restore_tree(reader, name, tree) for name, tree in targets.items()}
        meta = {name: value for name, value in meta.items() if name not in ("checksums", "digest")}
        return Restored(step, items, data, meta), reader

    def _together(self, function: Callable[[], T]) -> T:
        """Run a function on every host; if it fails with an LmError on one, all raise one of the same kind."""
        result, problem = None, None
        try:
            result = function()
        except Preempted:
            raise
        except LmError as error:
            problem = error
        kinds = {kind.__name__: kind for kind in (DamagedFileError, UsageError, ConfigError)}
        told = json.dumps([type(problem).__name__, str(problem)]) if problem else ""
        problems = [json.loads(text) for text in hosts.gather(told) if text]
        if problem:
            raise problem
        if problems:
            kind, text = problems[0]
            raise kinds.get(kind, LmError)(text)
        return result

    def _prepare(self, step: int, num_bytes: int) -> None:
        self.wait()
        if not hosts.is_first():
            return
        make_folder(self.folder)
        self._settle()
        for later in [number for number in self.steps() if number >= step]:
            name = self._set_aside(later, "rolled-back")
            self._warn(f'set aside "{self._path(later)}" as "{name}": the run went back to before it')
        if uploads(self.folder):
            check_room_for_copy(num_bytes)
        elif not is_remote(self.folder):
            self._make_room(step, num_bytes)

    def _make_room(self, step: int, num_bytes: int) -> None:
        """Remove what the new checkpoint would replace, as far as its files need the room; never the last good one."""
        free = lambda: shutil.disk_usage(self.folder).free  # noqa: E731
        for old in self._superfluous([*self.steps(), step]):
            if free() >= num_bytes:
                return
            if self._good is not None and old != self._good:
                self._warn(f'removing "{self._path(old)}" to make room for the checkpoint of step {step}')
                self._remove(self._path(old))
        if free() < num_bytes:
            raise LmError(
                f'cannot write checkpoint "{self._path(step)}": it needs {num_bytes / 1e9:.3g} GB, and there are '
                f"{free() / 1e9:.3g} GB free. Make room there."
            )

    def _superfluous(self, steps: list[int]) -> list[int]:
        best = ranked(self.folder)[: self._keep_best] if self._keep_best else ()
        return superfluous(steps, keep=self._keep, keep_every=self._keep_every, best=best)

    def _failed(self, error: BaseException) -> LmError:
        """Remove what was written of the step under way, and return what to say."""
        step, self._writing, self._has_failed = self._writing, None, True
        self._clear()
        newest = "there is none before it" if self._good is None else f"the newest whole one is of step {self._good}"
        return LmError(f'cannot write checkpoint "{self._path(step)}" ({newest}): {_one_line(error)}')

    def _settle(self) -> None:
        """Remove what the other writes of a save that failed have left meanwhile."""
        if self._has_failed:
            time.sleep(SETTLE_SECONDS)
            self._has_failed = False
            self._clear()

    def _clear(self) -> None:
        """Remove what is half-written; if the disk or the store refuses, the next save does it."""
        if not hosts.is_first():
            return
        try:
            for path in unfinished(self.folder):
                self._remove(path)
        except Preempted:
            raise
        except (LmError, OSError):
            self._has_failed = True

    def _remove_superfluous(self) -> None:
        """Remove checkpoints that need not stay; if that fails the new one is no less whole, and the next save does it."""
        try:
            for step in self._superfluous(self.steps()):
                self._remove(self._path(step))
        except Preempted:
            raise
        except (LmError, OSError) as error:
            self._warn(f"checkpoints that need not stay are still there: {error}")

    def _set_aside(self, step: int, why: str) -> str:
        """Rename a checkpoint so that nothing takes it for one; return its new name."""
        old, names = self._path(step), (f"{step}.{why}{number}" for number in ("", *map("-{}".format, range(2, 1000))))
        name = next(name for name in names if not exists(join(self.folder, name)))
        try:
            if is_remote(old):
                with of_store(old, "rename"):
                    filesystem(old).mv(old, join(self.folder, name), recursive=True)
            else:
                os.rename(old, join(self.folder, name))
        except OSError as error:
            raise LmError(f'cannot rename "{old}": {error.strerror or error}.') from error
        return name

    def _path(self, step: int | None) -> str:
        return join(self.folder, str(step))

    def _remove(self, path: str) -> None:
        if is_remote(path):
            with of_store(path, "remove"):
                filesystem(path).rm(path, recursive=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _one_line(error: BaseException) -> str:
    """TensorStore names file after file and says why at the end, before lines of its own source in brackets."""
    text = " ".join(str(error).split(" [")[0].split()).rsplit('": ', 1)[-1] or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
