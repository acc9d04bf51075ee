"""What a run was made with: versions, commit, command."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from typing import Any

_PACKAGES = ("lm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tiktoken", "rustbpe")


def describe_environment() -> dict[str, Any]:
    """Return `git_commit` (of this code; `+changes` if it has any; None if installed), `packages`, `python`, `command`."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": _git_commit(),
        "packages": packages,
        "python": platform.python_version(),
        "command": shlex.join(["lm", *sys.argv[1:]]),
    }


def _git_commit() -> str | None:
    folder, name = os.path.split(os.path.abspath(__file__))

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", name):  # a site-packages folder inside somebody's repository
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
