"""Orbax's writer: onto disks and `gs://`, and through a copy on this machine's disk onto every other object store.

Orbax 0.12.8 writes arrays to no other store (its TensorStore specification of an `s3://` path is that of a file).
"""

import functools
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lm.checkpoint.layout import PUBLISHED
from lm.errors import LmError
from lm.storage import filesystem, is_remote, upload

# Bytes of a stored chunk at most: readers decode whole chunks, so this is what they need beside the arrays.
CHUNK = 64 << 20


def uploads(folder: str) -> bool:
    """Return whether checkpoints in a folder are written onto this machine's disk first and then uploaded."""
    return is_remote(folder) and not folder.startswith("gs://")


def check_room_for_copy(num_bytes: int) -> None:
    """Refuse an upload whose copy has no room on this machine's disk.

    Raises:
      LmError: there are fewer bytes free.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise LmError(
            f'cannot upload a checkpoint: its copy in "{folder}" needs {num_bytes / 1e9:.3g} GB, and there are '
            f"{free / 1e9:.3g} GB free. Make room there, or name another folder in $TMPDIR."
        )


class Writer:
    """Writes checkpoints in the background, one at a time.

    Args:
      folder: that they will lie in.
      items: the names of all items that there may be.
    """

    def __init__(self, folder: str, items: Sequence[str]):
        import orbax.checkpoint as ocp  # 0.3 s: only where checkpoints are written

        _silence_orbax()
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(*items))
        self._uploads = uploads(folder)
        self._upload: threading.Thread | None = None
        self._problem: Exception | None = None

    def save(self, path: str, arrays: Mapping[str, Any], jsons: Mapping[str, Mapping]) -> None:
        """Start writing a checkpoint; arrays are copied before this returns.

        Args:
          path: the folder of the step.
          arrays: item -> tree.
          jsons: item -> what is saved as JSON.
        """
        import orbax.checkpoint as ocp
        from etils import epath

        self.wait_until_finished()
        arguments = {name: ocp.args.StandardSave(tree, save_args=_chunked(tree)) for name, tree in arrays.items()}
        arguments |= {name: ocp.args.JsonSave(dict(content)) for name, content in jsons.items()}
        save = lambda to: self._orbax.save(to, args=ocp.args.Composite(**arguments), force=True)  # noqa: E731
        if not self._uploads:
            save(epath.Path(path) if is_remote(path) else epath.Path(path).absolute())
            return
        copy = tempfile.mkdtemp(prefix="lm-checkpoint-")
        try:
            save(epath.Path(copy) / "step")
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        self._upload = threading.Thread(target=self._finish, args=(copy, path))
        self._upload.start()

    def _finish(self, copy: str, path: str) -> None:
        try:
            self._orbax.wait_until_finished()
            local = os.path.join(copy, "step")
            if filesystem(path).exists(path):
                filesystem(path).rm(path, recursive=True)
            upload(local, path, last=PUBLISHED)
        except Exception as error:  # raised where the save is waited for
            self._problem = error
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def check_for_errors(self) -> None:
        """Raise what made the background save fail, once; never waits."""
        if not self._uploads:
            self._orbax.check_for_errors()
        elif self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    def wait_until_finished(self) -> None:
        """Wait for the background save; raises what made it fail."""
        if self._upload is not None:
            self._upload.join()
            self._upload = None
        if not self._uploads:
            self._orbax.wait_until_finished()
        self.check_for_errors()

    def close(self) -> None:
        """Wait, and stop the threads."""
        self.wait_until_finished()
        self._orbax.close()


def _chunked(tree: Any) -> Any:
    """Return Orbax's options, which divide large arrays into chunks.

    Orbax halves the largest dimension as it can: one that is no multiple of a power of two could end in slivers.
    """
    import orbax.checkpoint as ocp

    def options(leaf):
        divides = leaf.ndim and max(leaf.shape) % 128 == 0
        return ocp.SaveArgs(chunk_byte_size=CHUNK if divides else None)

    return jax.tree.map(options, tree)


@functools.cache
def _silence_orbax() -> None:
    """A save that fails reaches the user as one line.

    Not as the traceback that each of Orbax's threads logs, nor with those of its other writes, which end after the
    first has failed: nobody waits for them any more.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", r"coroutine '.*serialize.*' was never awaited", RuntimeWarning)
    show = sys.unraisablehook
    sys.unraisablehook = lambda what: None if str(what.exc_value) == "Event loop is closed" else show(what)
