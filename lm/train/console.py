"""What a person sees of a run: one live line on stderr, notes above it, and `log.txt`."""

import datetime
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from lm.storage import LineLog, is_remote, join
from lm.train.metrics import REMOTE_FLUSH_SECONDS

PLAIN_SECONDS = 10.0  # between progress lines in log.txt and on a stderr that is not a terminal
LIVE_SECONDS = 0.1  # between redraws of the live line

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # C0, DEL, C1 and lone surrogates, not \t \n


class Console:
    """A sink that shows records; a context manager, so that the terminal is always given back.

        with Console(workdir, num_steps) as console:
            console.write(record)
            console.note("saved checkpoint 200")

    On a terminal the newest record is one live line; elsewhere a plain line appears every ten
    seconds. Everything shown also goes to `log.txt` in the run's folder, with the time.
    """

    def __init__(self, workdir: str, num_steps: int, file: TextIO | None = None):
        """Show a run of `num_steps` optimizer steps on `file` (default: stderr)."""
        import rich.console  # 0.1 s that `lm --help` need not pay
        import rich.live

        self._console = rich.console.Console(file=file or sys.stderr, highlight=False, markup=False, emoji=False)
        self._num_steps = num_steps
        self._log = LineLog(join(workdir, "log.txt"))
        self._log_seconds = REMOTE_FLUSH_SECONDS if is_remote(workdir) else 0.0
        self._log_flushed = self._drawn = self._reported = -math.inf  # when
        self._started: tuple[float, int] | None = None  # when, and the step of the first train record: it has compiled
        self._newest: tuple[int, str] | None = None  # step, progress line
        self._newest_reported = True
        self._live = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # stdout stays as it is: it carries results, and may be a pipe.
            self._live = rich.live.Live(console=self._console, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Show one record (see `lm/train/metrics.py`): a train record as progress, the others as notes."""
        if kind := {"eval": describe_eval, "task": describe_task}.get(record.get("kind", "train")):
            self.note(kind(record))
            return
        now, step = time.monotonic(), int(record["step"])
        self._started = self._started or (now, step)
        first_time, first_step = self._started
        left = (now - first_time) / (step - first_step) * (self._num_steps - step) if step > first_step else None
        self._newest, self._newest_reported = (step, describe_train(record, self._num_steps, left)), False
        if now - self._drawn >= LIVE_SECONDS:
            self._draw()
            self._drawn = now
        if now - self._reported >= PLAIN_SECONDS:
            self._report()
            self._reported = now

    def note(self, text: str) -> None:
        """Print a line (or several) above the live one; control characters in it do not reach the terminal."""
        text = printable(text)
        self._console.print(text, soft_wrap=True)
        self._append_log(text)

    def summary(self, table: Mapping[str, str]) -> None:
        """Print `{name: value}` as a table, after the last record."""
        import rich.box
        import rich.table

        self._finish_progress()
        shown = rich.table.Table(box=rich.box.SIMPLE, show_header=False)
        shown.add_column(style="dim")
        shown.add_column(overflow="fold")
        for name, value in table.items():
            shown.add_row(printable(name), printable(value))
            self._append_log(f"{printable(name)}: {printable(value)}")
        self._console.print(shown)

    def flush(self) -> None:
        """Write what `log.txt` still lacks; raises LmError if it cannot be written."""
        self._log_flushed = time.monotonic()
        self._log.flush()

    def close(self) -> None:
        """Give the terminal back and finish `log.txt`; safe to call twice."""
        self._finish_progress()
        self.flush()

    def _finish_progress(self) -> None:
        """Leave the newest record as the last progress line, and the live display."""
        self._draw()
        if self._live:
            self._live.stop()
        if not self._newest_reported:
            self._report()

    def _draw(self) -> None:
        if not (self._live and self._live.is_started and self._newest):
            return
        import rich.text

        step, line = self._newest
        width = 20 if self._console.width >= 120 else 0
        filled = round(width * min(step / self._num_steps, 1.0))
        text = rich.text.Text(no_wrap=True, overflow="ellipsis")
        text.append("━" * filled, style="cyan").append("━" * (width - filled), style="dim")
        self._live.update(text.append("  " * bool(width) + line), refresh=True)

    def _report(self) -> None:
        """Put the newest progress line where it stays: log.txt, and the stream if that is no terminal."""
        line = self._newest[1]
        if not self._live:
            self._console.print(line, soft_wrap=True)
        self._append_log(line)
        self._newest_reported = True

    def _append_log(self, text: str) -> None:
        moment = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        first, *rest = text.split("\n")
        for line in [f"{moment}  {first}", *(f"    {line}" for line in rest)]:
            self._log.append(line)
        if time.monotonic() - self._log_flushed >= self._log_seconds:
            self.flush()


class SilentConsole:
    """The console of every host but the first, whose one speaks for all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        pass

    def write(self, record: Mapping[str, Any]) -> None:
        """Show nothing, as the other methods."""

    def note(self, text: str) -> None: ...

    def summary(self, table: Mapping[str, str]) -> None: ...


def describe_train(record: Mapping[str, Any], num_steps: int, seconds_left: float | None) -> str:
    """Return a train record as one line; what is not known is `-`."""
    mfu = record.get("mfu")
    return " · ".join(
        [
            f"step {record['step']}/{num_steps}",
            f"{duration(seconds_left)} left",
            f"loss {_number(record.get('loss'), '.3f')}",
            f"{_number(record.get('bits_per_byte'), '.3f')} bits/byte",
            f"{compact(record.get('tokens_per_second'))} tok/s",
            f"MFU {'-' if mfu is None else format(mfu, '.1%')}",
            f"lr {_number(record.get('learning_rate'), '.3g')}",
        ]
    )


def describe_eval(record: Mapping[str, Any]) -> str:
    """Return an eval record as one line; what is not known is `-`."""
    return (
        f"step {record['step']} · {record.get('split', 'validation')}: "
        f"{_number(record.get('bits_per_byte'), '.4f')} bits/byte · loss {_number(record.get('loss'), '.4f')} · "
        f"perplexity {_number(record.get('perplexity'), '.2f')} · {compact(record.get('tokens'))} tokens"
    )


def describe_task(record: Mapping[str, Any]) -> str:
    """Return a task's record as one line; what is not known is `-`."""
    norm = f" · acc_norm {record['acc_norm']:.4f}" if "acc_norm" in record else ""
    return (
        f"step {record['step']} · {record['split']}: acc {_number(record.get('acc'), '.4f')}{norm} · "
        f"{_number(record.get('bits_per_byte'), '.4f')} bits/byte · {compact(record.get('items'))} items"
    )


def compact(number: float | None) -> str:
    """Return a count in three digits: 12.3k, 1.24M; `-` for None, NaN and infinities."""
    if number is None or not math.isfinite(number):
        return "-"
    scaled, suffix = float(number), ""
    for suffix in ("", "k", "M", "B", "T"):
        if abs(scaled) < 999.5 or suffix == "T":
            break
        scaled /= 1000
    if not suffix and scaled == int(scaled):
        return str(int(scaled))
    decimals = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{decimals}f}{suffix}"


def duration(seconds: float | None) -> str:
    """Return a time as `0:42`, `3:05:10` or `2d 03:05:10`; `-` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{seconds:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def printable(text: str) -> str:
    """Return text with control characters other than line ends and tabs replaced by U+FFFD.

    What a model or a file says may hold escape sequences; neither a terminal nor a page should act on them.
    """
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
