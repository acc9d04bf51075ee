"""`lm eval --all-steps`: every checkpoint of a run on the same text, compiled once: a table and a curve."""

import argparse
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from lm.checkpoint.run_folder import locate
from lm.commands import common, eval_loss
from lm.commands.opened import OpenedRun, open_run
from lm.errors import DamagedFileError, UsageError
from lm.storage import write_atomic


def run(args: argparse.Namespace) -> None:
    if args.step is not None or args.average or args.by:
        raise UsageError("--all-steps takes no --step, --average or --by.")
    workdir, folder, step = locate(args.checkpoint)
    if step is not None:
        raise UsageError(f'--all-steps: "{args.checkpoint}" is one step; give the run, "{workdir}".')
    rows: list[dict[str, Any]] = []
    text = evaluator = None
    for opened in every_step(workdir, folder, args.weights):
        if evaluator is None:  # one program, and the text cut once
            text, evaluator = eval_loss.text_of(args, opened), opened.evaluator
            if not args.json:
                print(f"{'step':>8}{'bits/byte':>12}{'loss':>9}{'perplexity':>12}")
        figures = evaluator(opened.params, text.batches, _progress(opened.step, len(text.batches)))
        eval_loss.check(figures, eval_loss.data_of(args))
        rows.append({"step": opened.step, **figures})
        if not args.json:
            row = f"{opened.step:>8}{figures['bits_per_byte']:>12.4f}{figures['loss']:>9.4f}{figures['perplexity']:>12.3f}"
            print(row, flush=True)
    best = min(rows, key=lambda row: math.inf if math.isnan(row["loss"]) else row["loss"])["step"]
    result = {
        "steps": rows,
        "best": best,
        "data": eval_loss.named(eval_loss.data_of(args)),
        "stride": text.stride,
        "sequence_length": text.sequence_length,
        "weights": opened.weights,
        "checkpoint": args.checkpoint,
    }
    if args.out:
        _draw(args.out, rows, " ".join(eval_loss.data_of(args)))
    if args.json:
        print(common.result_json(result))
        return
    print(f"the lowest loss is step {best}'s; {text.sequence_length} tokens per window, stride {text.stride}")


def _progress(step: int, batches: int) -> Callable[[int], None]:
    show = common.progress_line(f"step {step}, batches")
    return lambda done: show(done, batches)


def every_step(workdir: str, folder: str, weights: str | None) -> Iterator[OpenedRun]:
    """Yield a run's checkpoints, oldest first, each opened in the place of the one before.

    Damaged ones are left out, and those that a run in progress removes meanwhile.

    Args:
      workdir: the run's folder.
      folder: of its checkpoints.
      weights: as in `lm.commands.opened.open_run`.

    Raises:
      UsageError: there is no run, or no checkpoint.
      DamagedFileError: not one can be read.
    """
    from lm.checkpoint.layout import finished_steps

    opened = None
    for step in finished_steps(folder):
        try:
            opened = open_run(workdir, step, weights=weights) if opened is None else at_step(opened, folder, step)
        except (DamagedFileError, UsageError) as error:
            if step not in finished_steps(folder):
                common.note(f"passing over step {step}, which was removed meanwhile.")
            elif isinstance(error, UsageError):
                raise
            else:
                common.note(f"passing over a damaged checkpoint: {error}")
            continue
        yield opened
    if opened is None:
        open_run(workdir, weights=weights)  # says why


def at_step(opened: OpenedRun, folder: str, step: int) -> OpenedRun:
    """Return another checkpoint of the same run, in the place of this one, whose arrays are given up.

    Raises:
      DamagedFileError: it cannot be read.
      UsageError: there is none of that step.
    """
    import dataclasses

    import jax

    from lm.checkpoint.layout import WEIGHTS
    from lm.checkpoint.store import Checkpoints

    item = WEIGHTS[opened.weights]
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), opened.params)
    for array in jax.tree.leaves(opened.params):
        array.delete()  # two models at a time may be one too many
    restored = Checkpoints(folder, fingerprint=opened.info["fingerprint"], warn=common.note).restore(
        {item: like}, step=step
    )
    return dataclasses.replace(opened, params=restored.items[item], step=step)


def _draw(path: str, rows: list[dict[str, Any]], data: str) -> None:
    from lm.report.plots import Series, line_plot

    steps, bits = [row["step"] for row in rows], [row["bits_per_byte"] for row in rows]
    about = f"Bits per byte of {data} at each checkpoint, from {bits[0]:.4f} to {bits[-1]:.4f}."
    svg = line_plot([Series(steps, bits, points=True)], name="steps", description=about, y_label="bits per byte")
    write_atomic(path, re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", svg))  # no page around it defines the colors
    common.note(f'the curve is in "{path}"')
