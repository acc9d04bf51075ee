"""The errors a user can cause, each with the exit code that the command line turns it into.

Exit codes: 0 done; 2 wrong usage, config or missing input; 42 preempted but resumable;
1 anything else (damaged or unwritable files too). An `LmError` carries one line that names
what is wrong and what to do; `lm/__main__.py` prints it without a traceback.
"""

import difflib
from collections.abc import Iterable


class LmError(Exception):
    """Anything that goes wrong for a reason outside this code: one clear line, exit code 1."""

    exit_code = 1


class UsageError(LmError):
    """Wrong usage of the command line, or an input that does not exist: exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A config field that is unknown, of the wrong type or out of range: exit code 2."""


class DamagedFileError(LmError):
    """A file that exists but cannot be trusted (truncated, wrong hash, unreadable): exit code 1."""


class Preempted(LmError):
    """Stopped by SIGTERM or Ctrl-C after saving; running the same command continues: exit code 42."""

    exit_code = 42


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest accepted name, or an empty string."""
    close = difflib.get_close_matches(name, list(accepted), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
