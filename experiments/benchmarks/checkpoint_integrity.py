"""What checkpoints and shards notice of a flipped bit, and what the checksums cost.

    python -m experiments.benchmarks.checkpoint_integrity --json integrity.json

First a small model is trained for a few steps. Then, once per flip, one bit is inverted in one file of the newest
checkpoint or the prepared data (by turns any bit of them all, and any bit of any file), what it belongs to is opened as
training and as evaluation open it, and the bit is put back. A flip is

    detected   the checkpoint is refused by name and the one before it used, or the data are refused by name
    harmless   every value that was read is, bit for bit, what it was
    SILENT     some value is another one, and nobody said so
    crashed    anything but the one clear line of an `LmError`

With `--unverified` nothing is verified: what Orbax and TensorStore notice by themselves.

Second, the cost on a model of 124M parameters with Adam's moments (`experiments/gpt2_124m.py`'s shape in f32): seconds
of the checksums beside those of the save that they belong to, and their share of the time of 100 steps. Nothing else
should run on the machine. On two CPU cores: about a minute for 300 flips, and four for the cost.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import gpt2_124m, tiny
from lm.commands import common
from lm.commands.startup import setup_jax
from lm.config import Config
from lm.errors import LmError
from lm.resolve import resolve, with_vocabulary

STEPS, SAVE_EVERY = 16, 8  # of the small run
SAVES, TIMED_STEPS = 3, 2  # of the large model
STEP_ROWS, STEP_LENGTH = 2, 1024  # tokens of its step
STEPS_PER_SAVE = 100


def write_text(path: pathlib.Path, words: int = 4000) -> pathlib.Path:
    """Write made-up prose, the same each time."""
    draw = random.Random(0)
    lexicon = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(60)]
    path.write_text(" ".join(draw.choice(lexicon) for _ in range(words)))
    return path


def small_config(text: pathlib.Path):
    """Return the small run's config: two layers, AdamW, a moving average, so that every item of a checkpoint is there."""
    config = tiny.get_config()
    config.data.source, config.data.path, config.data.workers = "text", str(text), 1
    config.data.tokenizer_vocab_size, config.data.sequence_length, config.data.batch_size = 300, 32, 8
    config.model.num_layers, config.model.d_model, config.model.num_heads = 2, 32, 2
    config.optimizer.name, config.optimizer.ema_decay, config.optimizer.num_steps = "adamw", 0.9, STEPS
    config.optimizer.warmup_steps = 2
    config.checkpoint.every_steps = config.eval.every_steps = SAVE_EVERY
    return config


class SmallRun:
    """A trained small run, and what its files hold when they are whole.

    Args:
      folder: where it is made.
      verify: check arrays against their checksums and shards against their manifest.
    """

    def __init__(self, folder: pathlib.Path, verify: bool = True):
        from lm.data.loader import Loader
        from lm.data.prepare import prepare
        from lm.parallel.mesh import make_mesh
        from lm.train.loop import STATE_ITEMS, train
        from lm.train.step import build_step

        config = common.resolve_here(small_config(write_text(folder / "words.txt")))
        self.data = prepare(config.data, cache_root=str(folder / "cache"))
        self.checkpoints, self._verify = str(folder / "run" / "checkpoints"), verify
        loader = Loader(self.data, sequence_length=config.data.sequence_length, batch_size=config.data.batch_size)
        config = with_vocabulary(config, loader.vocab_size)
        built = build_step(config, make_mesh(config.parallel))
        os.makedirs(folder / "run")
        train(config, built, loader, str(folder / "run"), console=_Silent())
        params = built.state.params
        ema = built.state.extra["ema"]
        self._targets = {
            "training": {name: getattr(built.state, name) for name in STATE_ITEMS},
            "evaluation": {"params": params},
            "evaluation of the moving average": {"extra/ema": ema},
        }
        self._whole = {use: self._restored(use) for use in self._targets}
        assert all(step == STEPS for step, _ in self._whole.values())
        self._whole_data = self._read_data()

    def files(self) -> list[str]:
        """Return the files of the newest checkpoint and of the prepared data, the empty ones left out."""
        folders = os.path.join(self.checkpoints, str(STEPS)), self.data
        paths = [os.path.join(root, name) for folder in folders for root, _, names in os.walk(folder) for name in names]
        return sorted(path for path in paths if os.path.getsize(path))

    def kind(self, path: str) -> str:
        """Return what sort of file this is."""
        if path.startswith(self.data):
            return "data: " + os.path.basename(path).replace("-00000", "")
        parts = os.path.relpath(path, os.path.join(self.checkpoints, str(STEPS))).split(os.sep)
        if parts[-2:-1] == ["d"]:
            return "arrays' bytes and B-trees (d/)" if "ocdbt.process_0" in parts else "B-tree of an item (d/)"
        return parts[-1] if parts[0] not in ("data", "meta") else f"{parts[0]}/{parts[-1]}"

    def classify(self, path: str) -> dict[str, str]:
        """Return what every use of a file makes of it, by use."""
        if path.startswith(self.data):
            return {"training and evaluation": self._outcome(self._read_data, self._whole_data)}
        return {use: self._outcome(lambda use=use: self._restored(use), self._whole[use]) for use in self._targets}

    def _outcome(self, read, whole) -> str:
        try:
            found = read()
        except LmError:
            return "detected"
        except Exception as error:
            print(f"crashed: {type(error).__name__}: {error}")
            return "crashed"
        if isinstance(found, tuple) and found[0] != whole[0]:
            return "detected"  # the checkpoint before was used, which a warning said
        return "harmless" if found == whole else "SILENT"

    def _restored(self, use: str) -> tuple[int, Any]:
        import jax

        from lm.checkpoint.store import Checkpoints

        lines: list[str] = []
        checkpoints = Checkpoints(self.checkpoints, verify=self._verify, warn=lines.append)
        restored = checkpoints.restore(self._targets[use])
        if restored.step != STEPS and not lines:
            raise AssertionError("another checkpoint was used without a word")
        leaves, structure = jax.tree.flatten(jax.device_get(restored.items))
        values = [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves]
        about = [restored.data, restored.meta] if use == "training" else None  # evaluation does not look at them
        return restored.step, (str(structure), values, about)

    def _read_data(self) -> Any:
        from lm.data.dataset import open_data

        dataset = open_data(self.data, self._verify)
        arrays = [a for split in dataset.splits for shard in dataset.shards(split) for a in (shard.tokens, shard.ends)]
        return [
            dataset.hash,
            dataset.vocab_size,
            dataset.tokenizer.sha256,
            dataset.token_bytes.tobytes(),
            *(array.tobytes() for array in arrays),
        ]


class _Silent:
    def note(self, line: str) -> None:
        pass

    def write(self, record: Any) -> None:
        pass


@contextlib.contextmanager
def flipped(path: str, bit: int) -> Iterator[None]:
    """Invert one bit of a file within the block; its times stay what they were, as on a decaying disk."""
    times = os.stat(path)

    def flip() -> None:
        with open(path, "r+b") as file:
            file.seek(bit // 8)
            byte = file.read(1)[0] ^ 1 << bit % 8
            file.seek(bit // 8)
            file.write(bytes([byte]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    flip()
    try:
        yield
    finally:
        flip()


def flips(run: SmallRun, count: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """Return how many flips were detected, harmless, SILENT and crashed, by kind of file; the worst use counts."""
    draw, table = random.Random(seed), collections.defaultdict(collections.Counter)
    order = ("harmless", "detected", "crashed", "SILENT")  # the later, the worse
    files = run.files()
    sizes = list(map(os.path.getsize, files))
    for number in range(count):
        path = draw.choice(files) if number % 2 else draw.choices(files, sizes)[0]
        bit = draw.randrange(8 * os.path.getsize(path))
        with flipped(path, bit):
            outcomes = run.classify(path)
        worst = max(outcomes.values(), key=order.index)
        table[run.kind(path)][worst] += 1
        if worst == "SILENT":
            print(f"SILENT: bit {bit} of {path}: {outcomes}")
    return {kind: {outcome: table[kind][outcome] for outcome in order} for kind in sorted(table)}


def large_config() -> Config:
    """Return the config of the model whose checksums are timed."""
    import jax

    from lm.parallel.devices import detect

    config = gpt2_124m.get_config()
    config.model.remat, config.precision.compute = "none", "float32"
    config.data.path, config.optimizer.accumulation_steps = "none", 1
    config.data.batch_size, config.data.sequence_length = STEP_ROWS, STEP_LENGTH
    return with_vocabulary(resolve(config, devices=jax.device_count(), capabilities=detect()), 50257)


def cost(folder: str) -> dict[str, Any]:
    """Return seconds of checksums, saves and steps of the large model, and their ratios."""
    import jax

    from lm.checkpoint.checksum import tree_checksums
    from lm.checkpoint.store import Checkpoints
    from lm.parallel.mesh import make_mesh, place_batch, replicated
    from lm.train.step import build_step, step_scalars

    config = large_config()
    built = build_step(config, make_mesh(config.parallel))
    state = built.init()
    tokens = np.random.default_rng(0).integers(0, 50257, (STEP_ROWS, STEP_LENGTH + 1)).astype(np.int32)
    ones, rows = np.ones((STEP_ROWS, STEP_LENGTH), np.int32), np.arange(STEP_LENGTH, dtype=np.int32)[None]
    arrays = {
        "inputs_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "weights_BT": ones.astype(np.float32),
        "segment_ids_BT": ones,
        "positions_BT": ones * rows,
        "target_bytes_BT": ones,
    }
    batch = place_batch(
        built.mesh,
        (1, STEP_ROWS, STEP_LENGTH),
        lambda rows, columns: {name: array[rows][:, columns] for name, array in arrays.items()},
    )
    scalars = jax.device_put(step_scalars(config, 1), replicated(built.mesh))
    step_seconds = []
    for _ in range(1 + TIMED_STEPS):  # the first compiles
        start = time.perf_counter()
        state, metrics = built.step(state, batch, scalars)
        jax.block_until_ready((state, metrics))
        step_seconds.append(time.perf_counter() - start)
    items = {"params": state.params, "opt_state": state.opt_state}
    sums, saves = [], []
    for number in range(1 + SAVES):  # the first compiles, and its file is new
        start = time.perf_counter()
        tree_checksums(items)
        sums.append(time.perf_counter() - start)
        checkpoints = Checkpoints(folder, keep=1)
        start = time.perf_counter()
        checkpoints.save(number, items, data={}, meta={})
        blocking = time.perf_counter() - start
        checkpoints.close()
        saves.append((time.perf_counter() - start, blocking))
    target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), items)
    reads = []
    for verify in (False, True, False, True):
        start = time.perf_counter()
        jax.block_until_ready(Checkpoints(folder, verify=verify).restore(target).items)
        reads.append(time.perf_counter() - start)
    checksum, step = statistics.median(sums[1:]), statistics.median(step_seconds[1:])
    save = statistics.median(total for total, _ in saves[1:])
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(items)),
        "checksum_seconds": checksum,
        "checksum_seconds_first": sums[0],
        "save_seconds": save,
        "save_blocking_seconds": statistics.median(blocking for _, blocking in saves[1:]),
        "restore_seconds": min(reads[0::2]),
        "restore_seconds_verified": min(reads[1::2]),
        "step_seconds": step,
        "step_tokens": STEP_ROWS * STEP_LENGTH,
        "share_of_save": checksum / save,
        f"share_of_{STEPS_PER_SAVE}_steps": checksum / (STEPS_PER_SAVE * step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unverified", action="store_true", help="without checksums and hashes")
    parser.add_argument("--no-cost", action="store_true", help="flips only")
    parser.add_argument("--folder", help="where files are written (default: a temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args()
    setup_jax()
    result: dict[str, Any] = {"flips": {}, "seed": args.seed, "verified": not args.unverified}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.flips:
            start = time.perf_counter()
            result["flips"] = flips(SmallRun(pathlib.Path(folder), verify=not args.unverified), args.flips, args.seed)
            _show_flips(result["flips"], time.perf_counter() - start)
        if not args.no_cost:
            result["cost"] = cost(os.path.join(folder, "large"))
            for name, value in result["cost"].items():
                print(f"{name:<26}{value:>16.4g}" if isinstance(value, float) else f"{name:<26}{value:>16,}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    total = sum((collections.Counter(row) for row in result["flips"].values()), collections.Counter())
    if total["crashed"] or (total["SILENT"] and not args.unverified):
        raise SystemExit(1)


def _show_flips(table: dict[str, dict[str, int]], seconds: float) -> None:
    outcomes = list(next(iter(table.values())))
    print(f"{'kind of file':<34}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for kind, row in table.items():
        print(f"{kind:<34}" + "".join(f"{row[outcome]:>10}" for outcome in outcomes))
    totals = [sum(row[outcome] for row in table.values()) for outcome in outcomes]
    print(f"{'all':<34}" + "".join(f"{total:>10}" for total in totals) + f"   in {seconds:.0f} s")


if __name__ == "__main__":
    main()
