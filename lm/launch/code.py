"""The code that a job runs: an archive of a clean git commit."""

import subprocess

from lm.errors import LmError, UsageError

_ROOT_ERROR = "the code that is to run must be a git repository; run `lm launch` inside it"


def commit(root: str) -> str:
    """Return the repository's current commit.

    Raises:
      UsageError: it is no git repository, or git is not there.
    """
    return _git(root, "rev-parse", "HEAD").strip()


def uncommitted(root: str) -> list[str]:
    """Return the files that differ from the commit, untracked ones too."""
    return [line[3:] for line in _git(root, "status", "--porcelain").splitlines()]


def root_of(folder: str) -> str:
    """Return the top of the repository that a folder is in."""
    return _git(folder, "rev-parse", "--show-toplevel").strip()


def archive(root: str, of_commit: str) -> bytes:
    """Return a gzipped tar of the files at a commit; the same commit gives the same bytes."""
    try:
        return subprocess.run(
            ["git", "-C", root, "archive", "--format=tar.gz", of_commit], check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise LmError(f"cannot pack the code at {of_commit[:12]}: {error}.") from error


def _git(root: str, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UsageError(f"{_ROOT_ERROR} (git is not installed).") from error
    except subprocess.CalledProcessError as error:
        raise UsageError(f"{_ROOT_ERROR} ({' '.join(error.stderr.split())[:120]}).") from error
    return done.stdout
