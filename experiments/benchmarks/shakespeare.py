"""Learning per second: tiny Shakespeare on this machine's CPU, beside nanoGPT's CPU quick start.

    python -m experiments.benchmarks.shakespeare --input input.txt --nanogpt path/to/nanoGPT \\
        --nanogpt-python path/to/python-with-torch

Ours: the whole `lm train` process (compilation, tokenizer, sharding, training) in a fresh cache, on
the first 90 % of the bytes, then `lm eval` on the last 10 % in strided windows. nanoGPT: the README's
CPU command on its own character split (the same 90/10 cut) with its own estimate of the validation
loss; one character is one byte. Fetches nothing: the checkout and the text are arguments.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

_QUICK_START = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]


def timed(command: list[str], **options) -> tuple[float, str]:
    """Run a command; return its wall time in seconds and its stdout."""
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
    return time.monotonic() - start, done.stdout


def run_ours(text: str, stride: int, folder: str, overrides: list[str]) -> dict[str, float]:
    """Return `seconds` of `lm train` and `bits_per_byte` of `lm eval` on the last tenth."""
    workdir, environment = os.path.join(folder, "run"), {**os.environ, "LM_CACHE": os.path.join(folder, "cache")}
    lm = [sys.executable, "-m", "lm"]
    config = ["--config", "experiments/shakespeare.py", f"--config.data.path={text}", *overrides]
    seconds, _ = timed([*lm, "train", *config, "--workdir", workdir], env=environment)
    _, out = timed(
        [*lm, "eval", "--checkpoint", workdir, "--data", "test", "--stride", str(stride), "--json"], env=environment
    )
    return {"seconds": seconds, "bits_per_byte": json.loads(out)["bits_per_byte"]}


def run_nanogpt(checkout: str, python: str, text: str, folder: str) -> dict[str, float]:
    """Return `seconds` of training and `bits_per_byte` of nanoGPT's quick start, in a copy of its checkout."""
    copy = os.path.join(folder, "nanoGPT")
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    shutil.copy(text, os.path.join(copy, "data", "shakespeare_char", "input.txt"))
    timed([python, "data/shakespeare_char/prepare.py"], cwd=copy)
    seconds, out = timed([python, "train.py", *_QUICK_START], cwd=copy)
    losses = re.findall(r"val loss ([\d.]+)", out)
    return {"seconds": seconds, "bits_per_byte": float(losses[-1]) / math.log(2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT; leave out to run ours alone")
    parser.add_argument("--nanogpt-python", default=sys.executable, help="an interpreter with torch, numpy, requests")
    parser.add_argument("--stride", type=int, default=16)
    args, overrides = parser.parse_known_args()
    text = os.path.abspath(args.input)
    with tempfile.TemporaryDirectory() as folder:
        ours = run_ours(text, args.stride, folder, overrides)
        print(f"lm       {ours['seconds']:6.1f} s  {ours['bits_per_byte']:.4f} bits per byte (stride {args.stride})")
        if args.nanogpt:
            peer = run_nanogpt(os.path.abspath(args.nanogpt), args.nanogpt_python, text, folder)
            print(f"nanoGPT  {peer['seconds']:6.1f} s  {peer['bits_per_byte']:.4f} bits per byte (its own estimate)")
            ratio = ours["bits_per_byte"] / peer["bits_per_byte"]
            print(f"ratio    {ours['seconds'] / peer['seconds']:6.2f}    {ratio:.3f}")


if __name__ == "__main__":
    main()
