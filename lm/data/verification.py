"""Hashing a split's files against its manifest: a small split before it is used, a large one meanwhile.

sha256 takes a second per GB on one core. Up to `AT_ONCE` bytes nobody notices, and what is damaged is never read. A
larger split is hashed by a background thread once per process (200 GB: 3 to 5 minutes of one core and of the disk, at
every start), and whoever reads batches learns of damage as soon as it is found. Nothing is remembered between starts:
disks decay without changing a file's time.
"""

import threading
from collections.abc import Mapping

from lm.data.shards import check_file
from lm.errors import LmError

AT_ONCE = 2**30  # bytes


class Verification:
    """Hashes files one after the other in a background thread.

    Args:
      expected: sha256 by path.
    """

    def __init__(self, expected: Mapping[str, str]):
        self._expected = dict(expected)
        self._problem: LmError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="verify shards")
        self._thread.start()

    def check(self, wait: bool = False) -> None:
        """Raise what was found so far; with `wait`, after everything is hashed.

        Raises:
          DamagedFileError: a file is not what the manifest says.
          LmError: a file cannot be read.
        """
        if wait:
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _work(self) -> None:
        for path, sha256 in self._expected.items():
            try:
                check_file(path, sha256)
            except LmError as error:
                self._problem = error
                return
