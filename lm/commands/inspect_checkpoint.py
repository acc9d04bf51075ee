"""`lm inspect CHECKPOINT`: what is in it, whether it is intact, how it differs from another; no JAX."""

import argparse
import contextlib
import json
import os
from typing import Any

import numpy as np

from lm import checkpoint as checkpoints
from lm.checkpoint import Checkpoint
from lm.checkpoint.layout import finished_steps
from lm.checkpoint.run_folder import locate
from lm.commands import common
from lm.errors import DamagedFileError, LmError, UsageError

_ONE = "--verify, --array and --diff are one question each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask about a checkpoint."""
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT", help="a run's folder, or one step: runs/tiny/checkpoints/400"
    )
    parser.add_argument(
        "--step", type=common.step, help="which checkpoint, or best (default: the newest that can be read)"
    )
    parser.add_argument("--items", action="store_true", help="list the optimizer's and all other arrays too")
    parser.add_argument("--verify", action="store_true", help="read everything and compare it with its checksums")
    parser.add_argument("--array", metavar="PATH", help="write one array to --out: layers/mlp/up/kernel, opt_state/…")
    parser.add_argument("--out", metavar="FILE.npy", help="where --array goes; bfloat16 is widened to float32")
    parser.add_argument("--diff", metavar="OTHER", help="compare with another checkpoint, relative to CHECKPOINT")
    parser.add_argument("--diff-step", type=int, metavar="N", help="which one of OTHER (default: the newest)")


def run(args: argparse.Namespace) -> None:
    """Answer what was asked about `args.checkpoint`."""
    if sum(bool(asked) for asked in (args.verify, args.array, args.diff)) > 1:
        raise UsageError(f"{_ONE}: give one of them.")
    if bool(args.array) != bool(args.out):
        raise UsageError("--array PATH and --out FILE.npy go together.")
    if args.diff_step is not None and not args.diff:
        raise UsageError("--diff-step needs --diff OTHER.")
    if not (args.verify or args.array or args.diff):
        _list(args)
        return
    # Verifying the newest means that one, not the newest that happens to open.
    step = _newest(args) if args.verify and args.step is None else args.step
    checkpoint = checkpoints.open(args.checkpoint, step, warn=common.note)
    if args.verify:
        _verify(checkpoint, args.json)
    elif args.array:
        _export(checkpoint, args)
    else:
        _diff(checkpoint, checkpoints.open(args.diff, args.diff_step, warn=common.note), args)


def _newest(args: argparse.Namespace) -> int | None:
    _, folder, step = locate(args.checkpoint)
    steps = finished_steps(folder)
    return step if step is not None or not steps else steps[-1]


def _list(args: argparse.Namespace) -> None:
    """Describe the newest checkpoint that can be read to its end."""
    result = checkpoints.read(args.checkpoint, args.step, lambda checkpoint: _describe(checkpoint, args), common.note)
    if args.json:
        print(common.result_json(result))
        return
    for name in ("checkpoint", "step", "steps", "fingerprint", "data", "parameters"):
        value = result[name]
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {part:,}" if isinstance(part, int) else f"{key} {part}" for key, part in value.items()
            )
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
    for item, of in result["totals"].items():
        print(f"{item}: {of['arrays']} arrays, {of['elements']:,} elements, {of['bytes'] / 2**20:,.1f} MiB")
    print()
    width = max((len(a["path"]) for a in result["arrays"]), default=0)
    for a in result["arrays"]:
        print(f"{a['path']:<{width}}  {tuple(a['shape'])!s:<22}{a['dtype']:>10}  norm {a['norm']:.4g}")


def _describe(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    items = checkpoint.items() if args.items else ["params"]
    wanted = [array for item in items for array in checkpoint.of(item)]
    show = common.progress_line("arrays")
    arrays = []
    for number, array in enumerate(wanted, 1):
        entry = {"path": array.path, "shape": list(array.shape), "dtype": str(array.dtype), "norm": array.norm()}
        arrays.append(entry)
        show(number, len(wanted))
    totals = checkpoint.totals()
    return {
        "checkpoint": args.checkpoint,
        "step": checkpoint.step,
        "steps": checkpoint.steps,
        "fingerprint": checkpoint.info.get("fingerprint"),
        "config": checkpoint.config,
        "data": checkpoint.data,
        "items": checkpoint.items(),
        "totals": totals,
        "parameters": totals.get("params", {}).get("elements", 0) + totals.get("frozen", {}).get("elements", 0),
        "arrays": arrays,
    }


def _verify(checkpoint: Checkpoint, as_json: bool) -> None:
    saved = {path.partition("/")[0] for path in checkpoint.reader.checksums or ()}  # a whole item may be gone
    items = [*checkpoint.items(), *sorted(saved - set(checkpoint.items()))]
    damaged = {item: checkpoint.reader.verify(item) for item in items}
    paths = [f"{item}/{path}" for item, paths in damaged.items() for path in paths]
    if as_json:
        print(json.dumps({"checkpoint": checkpoint.path, "step": checkpoint.step, "damaged": paths}))
    if paths:
        first = f"{', '.join(paths[:5])}{', …' if paths[5:] else ''}"
        raise DamagedFileError(
            f'checkpoint "{checkpoint.path}" is damaged: {len(paths)} of {len(checkpoint.arrays)} arrays are not what '
            f"was saved: {first}"
        )
    if not as_json:
        print(f"intact: step {checkpoint.step}, all {len(checkpoint.arrays)} arrays of {', '.join(damaged)}")


def _export(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Write one array piece by piece: it need not fit into memory."""
    array = checkpoint.arrays[args.array]
    # .npy has no name for the types of `ml_dtypes`; f32 holds each of their values.
    dtype = array.dtype if array.dtype.isbuiltin == 1 else np.dtype(np.float32)
    temporary = f"{args.out}.tmp"
    try:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=array.shape)
        for index, values in array.pieces():
            out[index] = values
        out.flush()
        os.replace(temporary, args.out)
    except OSError as error:
        raise LmError(f'cannot write "{args.out}": {error.strerror or error}.') from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)
    result = {"array": array.path, "step": checkpoint.step, "shape": list(array.shape), "dtype": str(array.dtype)}
    result |= {"out": args.out, "written_as": str(dtype)}
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{args.out}: {array.path} of step {checkpoint.step}, {array.dtype}{list(array.shape)} as {dtype}")


def _diff(a: Checkpoint, b: Checkpoint, args: argparse.Namespace) -> None:
    show = common.progress_line("arrays")
    items = [item for item in a.items() if item in b.items()] if args.items else ["params"]
    found = {item: checkpoints.difference(a, b, item, show) for item in items}
    if args.json:
        sides = {"a": {"checkpoint": a.path, "step": a.step}, "b": {"checkpoint": b.path, "step": b.step}}
        print(common.result_json({**sides, **found}))
        return
    print(f"a: {a.path}\nb: {b.path}")
    for item, result in found.items():
        verdict = "identical" if result["identical"] else f"differ by {_share(result['relative'])} of a's norm"
        print(f"\n{item}: {verdict}, at most {result['max_abs']:.4g}")
        width = max((len(entry["path"]) for entry in result["arrays"]), default=0)
        for entry in result["arrays"]:
            types = " against ".join(entry["dtypes"]) if "dtypes" in entry else ""
            print(
                f"{entry['path']:<{width}}  {_share(entry['relative']):>10}  max {entry['max_abs']:.4g}  {types}".rstrip()
            )
        for path, mine, theirs in result["shapes"]:
            print(f"{path}: shape {tuple(mine)} in a, {tuple(theirs)} in b")
        for side in ("a", "b"):
            for path in result[f"only_in_{side}"]:
                print(f"{path}: only in {side}")
    config = next(iter(found.values()))["config"]
    if config:
        print("\nconfig:")
    for field, (mine, theirs) in config.items():
        print(f"{field}: {mine!r} in a, {theirs!r} in b")


def _share(ratio: float | None) -> str:
    return "all of it" if ratio is None else f"{ratio:.3%}"
