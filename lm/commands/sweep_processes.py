"""The processes that train for a sweep or a search, as the one sees them that starts them."""

import argparse
import ast
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from lm.commands import common
from lm.commands.cluster import CHILD
from lm.config import apply_overrides, set_fields
from lm.errors import Preempted

QUIET = {"log.tensorboard": False, "log.sample_prompts": ()}  # unless a sweep or an override wants them

_TAIL = 4000  # characters of a worker's stderr kept, in which its last words are


def base_file(args: argparse.Namespace, sweep) -> str:
    return args.base or os.path.normpath(os.path.join(os.path.dirname(args.config), sweep.config))


def base_config(args: argparse.Namespace, sweep):
    """Return the config that a sweep or a search varies, not resolved yet: its base file's, its own and the command
    line's overrides applied."""
    config_dict = common.load_config(base_file(args, sweep))
    set_fields(config_dict, QUIET | dict(sweep.base))
    apply_overrides(config_dict, args.overrides)
    return config_dict


def first_paragraph(path: str) -> str:
    with open(path) as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return " ".join(text.split("\n\n")[0].split())


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a worker ended: its process id, its exit code (a signal's number below 0) and the end of its stderr."""

    pid: int
    code: int
    tail: str

    @property
    def reason(self) -> str:
        """Why, in one line."""
        last = self.tail.strip().rpartition("\n")[2][:300]
        if self.code >= 0:
            return f"exit code {self.code}: {last}"
        name = signal.Signals(-self.code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else f": {last}")


def run_worker(arguments: Sequence[str]) -> Ended:
    """Run `lm ARGUMENTS` as a worker until it ends; what it says on stderr is passed on, and so are signals.

    A worker that dies of a signal passed on to it, because it was not listening yet, is preempted like one that was.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "lm", *arguments],
        env=os.environ | {CHILD: str(os.getpid())},
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C reaches it from here alone, once
    )
    forwarded = (signal.SIGTERM, signal.SIGINT)
    passed_on = []

    def pass_on(number: int, _frame) -> None:
        passed_on.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in forwarded}
    tail = b""
    try:
        while chunk := os.read(child.stderr.fileno(), _TAIL):
            tail = (tail + chunk)[-_TAIL:]
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        child.stderr.close()
    return Ended(child.pid, Preempted.exit_code if -code in passed_on else code, tail.decode(errors="replace"))
