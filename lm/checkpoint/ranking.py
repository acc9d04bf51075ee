"""Which of a run's checkpoints are best, by what they were validated at. No JAX here."""

import contextlib

from lm.checkpoint.layout import finished_steps
from lm.checkpoint.reader import CheckpointReader
from lm.errors import DamagedFileError, UsageError
from lm.storage import join

METRIC = "bits_per_byte"  # of the validation split, in `meta`: the best checkpoints have least of it


def ranked(folder: str) -> list[int]:
    """Return the steps in a folder of checkpoints that were evaluated, the best first."""
    figures = {}
    for step in finished_steps(folder):
        with contextlib.suppress(DamagedFileError):
            figures[step] = CheckpointReader(join(folder, str(step))).json("meta").get(METRIC)
    return sorted((step for step, figure in figures.items() if figure is not None), key=figures.__getitem__)


def best_step(folder: str) -> int:
    """Return the step with the fewest bits per byte on the validation split.

    Raises:
      UsageError: no checkpoint was evaluated at its step.
    """
    steps = ranked(folder)
    if not steps:
        raise UsageError(
            f'no checkpoint in "{folder}" was evaluated at its step: config.checkpoint.every_steps is no multiple of '
            "config.eval.every_steps."
        )
    return steps[0]
