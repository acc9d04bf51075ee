"""A progress line on stderr for work that reads text."""

import sys
import time
from typing import Self


class StderrProgress:
    """Shows a stage, the characters done and the rate: one line redrawn on a terminal, else one per stage.

    Call it as `Progress` of lm/data/build.py; `close` ends the line.
    """

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._stage = ""
        self._done = 0
        self._begin = self._drawn = 0.0

    def __call__(self, stage: str, done: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._begin, self._drawn = stage, now, 0.0
        self._done = done
        if self._stream.isatty() and now - self._drawn > 0.1:
            self._drawn = now
            self._stream.write("\r" + self._line() + "\x1b[K")
            self._stream.flush()

    def _line(self) -> str:
        seconds = time.monotonic() - self._begin
        rate = f", {self._done / seconds / 1e6:.1f} M/s" if seconds > 0.2 else ""
        return f"{self._stage}: {self._done / 1e6:.1f} M characters{rate}"

    def close(self) -> None:
        """Write the stage's last line."""
        if self._stage:
            self._stream.write(("\r" if self._stream.isatty() else "") + self._line() + "\n")
            self._stream.flush()
            self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()
