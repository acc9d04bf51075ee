"""What became of a run's wall time, over all its attempts.

Goodput is the share of the wall time, from the first attempt's start to the last sign of life, that was spent in steps
whose work was kept: what Google's ml-goodput-measurement counts as productive
(https://docs.cloud.google.com/tpu/docs/goodput). What a step makes of the hardware is its MFU.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from lm.report import page
from lm.train.console import duration
from lm.train.timeline import PHASES

MOST_ATTEMPTS = 100  # on a page
OPEN_ATTEMPTS = 12  # more are folded away

# Part, its name on the page, its colour there, what it is.
_PARTS = (
    ("kept", "kept steps", "var(--series-2)", "steps whose work the run still has"),
    ("lost", "lost work", "var(--series-5)", "steps trained again, from an earlier checkpoint"),
    ("init", "initialization", "var(--series-0)", "imports, devices, data, checkpoint, until the first batch"),
    ("compile", "compilation", "var(--series-3)", "of the step"),
    ("data_wait", "data wait", "var(--series-1)", "the loop had no next batch"),
    ("evaluation", "evaluation, samples", "var(--series-4)", "with their compilation"),
    ("save", "saving", "var(--quiet)", "the loop was held up; at the end, the last files"),
    ("idle", "idle", "var(--rule)", "from the last sign of life to the next attempt's start"),
)


@dataclasses.dataclass
class Attempt:
    """One start of the training."""

    start: float  # Unix time
    end: float  # its last sign of life
    seconds: Mapping[str, float]  # per phase
    run: str | None = None  # the fingerprint; None: the line that tells it was torn
    first: int | None = None  # the step that it began at; None: it did not come so far
    last: int | None = None  # the last step that it is known to have done
    ended: str | None = None  # done, preempted or failed; None: killed, or it is still running
    reason: str = ""  # why it failed
    lost_steps: int = 0  # that a later attempt trained again
    lost: float = 0.0  # seconds in them


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Where the wall time went."""

    wall: float  # seconds from the first attempt's start to the last sign of life
    seconds: Mapping[str, float]  # kept, lost, init, compile, data_wait, evaluation, save, idle: together the wall time
    attempts: Sequence[Attempt]  # in the order of their starts

    @property
    def goodput(self) -> float:
        """The share of the wall time that was spent in steps whose work was kept."""
        return self.seconds["kept"] / self.wall if self.wall else 0.0


@dataclasses.dataclass
class _Stretch:
    """Steps after `begin` up to `end` that an attempt trained, and the seconds that they took."""

    attempt: Attempt
    begin: int
    end: int
    seconds: float

    def lose_after(self, step: int) -> bool:
        """Count as lost what was trained after a step, in proportion where that lies within; return whether it is all."""
        kept = max(0, min(self.end, step) - self.begin)
        share = 1 - kept / (self.end - self.begin) if kept else 1.0
        self.attempt.lost_steps += self.end - self.begin - kept
        self.attempt.lost += share * self.seconds
        self.end, self.seconds = self.begin + kept, (1 - share) * self.seconds
        return not kept


def breakdown(records: Sequence[Mapping[str, Any]]) -> Breakdown | None:
    """Return what became of the time that the records tell of; None: there is no attempt.

    Args:
      records: of `lm.train.timeline.read_timeline`. Attempts of another run, which the folder held before this one had
        trained a step, do not count, nor those that found the run finished.
    """
    attempts = _attempts_of(records)
    run = next((attempt.run for attempt in reversed(attempts) if attempt.run), None)
    counted: list[Attempt] = []
    for attempt in attempts:
        found_finished = any(earlier.ended == "done" for earlier in counted) and attempt.first == attempt.last
        if attempt.run in (None, run) and not found_finished:
            counted.append(attempt)
    if not counted:
        return None
    spent = {phase: sum(attempt.seconds[phase] for attempt in counted) for phase in PHASES}
    lost = sum(attempt.lost for attempt in counted)
    parts = {"kept": spent.pop("step") - lost, "lost": lost, **spent}
    # A clock that was set back must not make more of the parts than of the whole.
    wall = max(max(attempt.end for attempt in counted) - counted[0].start, sum(parts.values()))
    return Breakdown(wall, {**parts, "idle": wall - sum(parts.values())}, counted)


def _attempts_of(records: Sequence[Mapping[str, Any]]) -> list[Attempt]:
    """Return all attempts, each with the work that those after it trained again."""
    attempts: dict[float, Attempt] = {}
    kept: list[_Stretch] = []  # in the order of their steps
    for record in records:
        name, seconds, step = record["attempt"], record["seconds"], record["step"]
        attempt = attempts.setdefault(name, Attempt(name, name, dict.fromkeys(PHASES, 0.0), record.get("run")))
        if step is not None:
            if attempt.first is None:
                while kept and kept[-1].lose_after(step):
                    kept.pop()
                attempt.first = attempt.last = step
            kept.append(_Stretch(attempt, attempt.last, step, seconds["step"] - attempt.seconds["step"]))
            attempt.last = step
        attempt.end, attempt.seconds = record["time"], seconds
        attempt.ended, attempt.reason = record.get("end"), record.get("reason", "")
    return list(attempts.values())


def section(found: Breakdown) -> page.Markup:
    """Return the section of a run's page."""
    parts = [part for part in _PARTS if found.seconds[part[0]] >= 0.05]  # less would read 0.0 s
    bar = page.bar([(name, found.seconds[key] / found.wall, color) for key, name, color, _ in parts])
    rows = [
        [page.keyed(name, color), _time(found.seconds[key]), f"{found.seconds[key] / found.wall:.1%}", about]
        for key, name, color, about in parts
    ]
    count = len(found.attempts)
    over = f"in {count} attempts" if count > 1 else "in one attempt"
    return page.section(
        "Where the time went",
        page.paragraph(
            f"Goodput {found.goodput:.1%}: {_time(found.seconds['kept'])} of {_time(found.wall)} {over} were steps whose "
            "work was kept."
        ),
        bar,
        page.table(["", "time", "share", ""], rows, numeric=(1, 2)),
        _attempts(found.attempts) if count > 1 else None,
    )


def _attempts(attempts: Sequence[Attempt]) -> page.Markup:
    longest = max(attempt.end - attempt.start for attempt in attempts)
    numbered = list(enumerate(attempts, 1))[-MOST_ATTEMPTS:]
    rows = []
    for number, attempt in numbered:
        parts = {**attempt.seconds, "kept": attempt.seconds["step"] - attempt.lost, "lost": attempt.lost}
        shown = [(name, parts.get(key, 0.0) / longest, color) for key, name, color, _ in _PARTS if longest]
        rows.append(
            [
                number,
                f"{datetime.datetime.fromtimestamp(attempt.start, datetime.UTC):%Y-%m-%d %H:%M:%S}",
                _time(attempt.end - attempt.start),
                "-" if attempt.first is None else f"{attempt.first:,} to {attempt.last:,}",
                f"{attempt.lost_steps:,}" if attempt.lost_steps else "",
                page.bar(shown),
                attempt.ended or ("killed" if number < len(attempts) else "running, or killed"),
            ]
        )
    reasons = {f"attempt {number} failed": attempt.reason for number, attempt in numbered if attempt.reason}
    header = ["attempt", "start, UTC", "time", "steps", "lost steps", "", "ended"]
    table = page.table(header, rows, numeric=(0, 2, 4), kind="tight")
    pieces = (table, page.facts(reasons) if reasons else None)
    if len(attempts) <= OPEN_ATTEMPTS:
        return page.join([page.heading("Attempts"), *pieces])
    left_out = f", the last {MOST_ATTEMPTS}" if len(attempts) > MOST_ATTEMPTS else ""
    return page.fold(f"Attempts ({len(attempts)}{left_out})", *pieces)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
