"""What opening a checkpoint costs beside its weights: seconds and peak memory, ours and Orbax's own restore.

    python -m experiments.benchmarks.open_checkpoint                     # 1.18B parameters in f32: 4.7 GB of disk
    python -m experiments.benchmarks.open_checkpoint --layers 2          # quickly
    python -m experiments.benchmarks.open_checkpoint --folder runs/big   # made once and kept

The shape of experiments/llama_1b.py with random parameters, written by `lm.checkpoint.store` in a process of its own.
Then each in a fresh process, the peak of its resident memory as the kernel counts it, divided by the weights' bytes:

- `nothing`: JAX imported, one number on the device
- `open`: `lm.open(DIR)`
- `orbax`: Orbax's StandardRestore of the same parameters onto the same device
- `eval`: `lm eval --checkpoint DIR` on two windows of 512 tokens

Measured on two CPU cores that others used too, jax 0.10.2: 4.71 GB of weights; opened in 19.6 s, peak 5.37 GB (1.14 of
the weights; Orbax in 30.0 s, 2.19); evaluated at a peak of 5.77 GB (1.22; 1.25 where the program is compiled first).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

LENGTH = 512


def make(folder: str, layers: int) -> None:
    """Write a run's folder with one checkpoint of random parameters."""
    import jax
    import numpy as np

    from experiments.llama_1b import get_config
    from lm.checkpoint.store import Checkpoints
    from lm.config import to_dict
    from lm.model import Transformer
    from lm.resolve import fingerprint, resolve
    from lm.tokenizer import save, train_bpe

    config_dict = get_config()
    config_dict.model.num_layers = layers
    config_dict.model.vocab_size = 100_352  # cl100k_base's, padded to a multiple of 128
    config_dict.data.batch_size, config_dict.optimizer.accumulation_steps = 1, 1
    config_dict.data.sequence_length = LENGTH
    config_dict.parallel.data, config_dict.parallel.fsdp = -1, 1
    config = resolve(config_dict, devices=jax.device_count())
    shapes = jax.eval_shape(Transformer(config.model, config.precision).init, jax.random.key(0))
    draw = np.random.default_rng(0)
    make_one = lambda a: jax.numpy.asarray(draw.standard_normal(a.shape, np.float32) * 0.02)  # noqa: E731
    params = jax.tree.map(make_one, shapes)
    os.makedirs(folder, exist_ok=True)
    save(train_bpe([__doc__], 300), os.path.join(folder, "tokenizer.tiktoken"))
    checkpoints = Checkpoints(os.path.join(folder, "checkpoints"))
    checkpoints.save(1, {"params": params}, data={"rows_consumed": 0}, meta={"step": 1})
    checkpoints.close()
    identity = fingerprint(config, manifest_hash="none")
    info = {"config": to_dict(config), "fingerprint": identity, "data": {"manifest_hash": "none"}}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(info, file)
    with open(os.path.join(folder, "text.txt"), "w") as file:
        file.write((__doc__ * 8)[: 3 * LENGTH])


def open_ours(folder: str) -> None:
    import lm

    lm.open(folder)


def open_nothing(folder: str) -> None:
    from lm.commands.startup import setup_jax

    setup_jax().numpy.zeros(()).block_until_ready()


def open_orbax(folder: str) -> None:
    from lm.commands.startup import setup_jax

    jax = setup_jax()
    import orbax.checkpoint as ocp

    from lm.checkpoint.reader import CheckpointReader

    path = os.path.join(os.path.abspath(folder), "checkpoints", "1")
    reader, target = CheckpointReader(path), {}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for leaf, store in reader.open_all("params", reader.leaves("params")).items():
        *parents, name = leaf.split("/")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jax.ShapeDtypeStruct(store.shape, store.dtype.numpy_dtype, sharding=sharding)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler("params")) as checkpointer:
        restored = checkpointer.restore(path, args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))
    jax.block_until_ready(restored["params"])


SIDES = {"nothing": open_nothing, "open": open_ours, "orbax": open_orbax}


def measure(command: list[str]) -> tuple[float, int, str]:
    """Run a command; return its seconds, the peak of its resident memory in bytes, and its stdout."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}.")
    return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the run is made, and kept (default: a temporary folder)")
    parser.add_argument("--layers", type=int, default=16, help="of the model (default: 16, 1.18B parameters)")
    parser.add_argument("--make", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.layers)
        return
    if args.side:
        SIDES[args.side[0]](args.side[1])
        return
    with tempfile.TemporaryDirectory(prefix="open-checkpoint-") as temporary:
        folder = args.folder or temporary
        this = [sys.executable, "-m", "experiments.benchmarks.open_checkpoint"]
        if not os.path.exists(os.path.join(folder, "config.json")):
            seconds, peak, _ = measure([*this, "--make", folder, "--layers", str(args.layers)])
            print(f"written in {seconds:.1f} s, peak {peak / 1e9:.2f} GB", file=sys.stderr)
        from lm import checkpoint

        size = checkpoint.open(folder).totals()["params"]
        evaluate = [sys.executable, "-m", "lm", "eval", "--checkpoint", folder, "--json"]
        evaluate += ["--data", os.path.join(folder, "text.txt"), "--batch-size", "1", "--stride", str(LENGTH)]
        commands = {side: [*this, "--side", side, folder] for side in SIDES} | {"eval": evaluate}
        result = {"parameters": size["elements"], "bytes": size["bytes"]}
        print(f"{size['elements']:,} parameters, {size['bytes'] / 1e9:.2f} GB\n")
        print("| | seconds | peak GB | peak / weights |\n|---|---|---|---|")
        for side, command in commands.items():
            seconds, peak, _ = measure(command)
            ratio = peak / size["bytes"]
            print(f"| {side} | {seconds:.1f} | {peak / 1e9:.2f} | {ratio:.2f} |", flush=True)
            result[side] = {"seconds": seconds, "peak_bytes": peak, "ratio": ratio}
        print(f"\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
