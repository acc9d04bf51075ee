"""Two programs that are compared by speed take turns: each is a process of its own, idle while the other works.

A worker calls `serve` with its trainer; the program that compares starts a `Side` for each and calls `take_turns`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

WARMUP_STEPS = 3  # before the first turn; the first compiles


class Trainer(Protocol):
    """What trains in a worker."""

    about: Mapping[str, Any]  # plain data that the comparing program reads once: `parameters` and more
    loss: float  # of the newest step, in nats per token

    def run(self, steps: int) -> None:
        """Train; returns when the device has finished."""

    def peak_bytes(self) -> int | None:
        """Return the most device memory that was ever in use, or None where nobody counts it."""


def serve(make: Callable[[], Trainer]) -> None:
    """Be one side: make the trainer and warm it up, then train as many steps as each line of stdin asks for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what libraries print

    def answer(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    trainer = make()
    trainer.run(1)
    first_loss = trainer.loss
    trainer.run(WARMUP_STEPS - 1)
    answer(first_loss=first_loss, **trainer.about)
    for line in sys.stdin:
        start, cpu_start, steps = time.perf_counter(), time.process_time(), int(line)
        trainer.run(steps)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        answer(seconds=seconds / steps, cpu_seconds=cpu_seconds / steps, peak_bytes=trainer.peak_bytes())


class Side:
    """A worker process that trains when asked and is idle otherwise; what it tells of itself is `about`."""

    def __init__(self, program: str, command: list[str], environment: Mapping[str, str]):
        """Start a worker and wait until it is warm.

        Args:
          program: what errors begin with.
          command: its command line; the code that it imports is that of the current folder.
          environment: variables beside this process's own.
        """
        self._program = program
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._program}: a side ended early, with {self._process.wait()}; its error is above.")
        return json.loads(line)

    def train(self, steps: int) -> dict[str, Any]:
        """Train; return `seconds` and `cpu_seconds` (of all its threads) per step, and `peak_bytes`."""
        time.sleep(0.2)  # what the other side's threads still spin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def take_turns(sides: Mapping[str, Side], *, rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return each side's answers of `Side.train`, one a round.

    Who goes first alternates, so that a noisy neighbour meets both.

    Args:
      sides: by name.
      rounds: turns of each side.
      seconds: of a turn, about.
    """
    steps = {name: max(1, round(seconds / side.train(3)["seconds"])) for name, side in sides.items()}
    answers: dict[str, list] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            answers[name].append(sides[name].train(steps[name]))
    return answers
