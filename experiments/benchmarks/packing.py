"""Best-fit packing on real document lengths: padding, documents split, and how fast the plan is made.

    LM_REAL_DATA=… TIKTOKEN_CACHE_DIR=… python -m experiments.benchmarks.packing [--peer-python PYTHON]

Lengths are those of the 1,000 documents of `web/c4-1000.jsonl` in GPT-2 tokens, each with its separator. The plan's speed
is measured on `--tokens` tokens of documents whose lengths are drawn from them. With `--peer-python`, of an environment
that has grain, its online packers pack the same 1,000 documents, cut to rows like ours, in the same run.

Measured on 2 shared CPU cores (481,027 tokens; plans of 201 Mtok; processor time), grain 0.2.18 with 16 and 64 bins.
Its packers copy tokens as they go and see a window of the data; ours makes the plan alone and sees all lengths:

        T   rows (bound)   padding   fitting documents split   concat splits   plan        grain best fit
      256   1,882 (1,880)    0.16%                         0             245   4,193 Mtok/s   5.48%, 3.34%; 0.6 Mtok/s
    1,024     471 (470)      0.26%                         0             264   6,202 Mtok/s   4.52%, 2.13%; 1.3 Mtok/s
    2,048     236 (235)      0.48%                         0             180   7,117 Mtok/s   3.34%, 1.31%; 1.5 Mtok/s
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from lm.data.packing import best_fit_plan, concat_plan, cut_documents, padding_fraction
from lm.tokenizer import load_tokenizer

ROWS = (256, 1024, 2048)
PEER = """
import json, sys, time
import grain, numpy as np
from grain.experimental import BestFitPackIterDataset, FirstFitPackIterDataset

lengths, size, bins = json.load(sys.stdin)
tokens = [{"x": np.ones(n, np.int32)} for n in lengths]
out = {"version": grain.__version__}
for name, packer in (("first fit", FirstFitPackIterDataset), ("best fit", BestFitPackIterDataset)):
    source = grain.MapDataset.source(tokens).to_iter_dataset()
    packed = packer(source, length_struct={"x": size}, num_packing_bins=bins)
    begin = time.process_time()
    rows = sum(1 for _ in packed)
    out[name] = {"rows": rows, "seconds": time.process_time() - begin}
print(json.dumps(out))
"""


def document_lengths(path: str) -> np.ndarray:
    """Return the GPT-2 tokens of each line's text, the separator counted."""
    tokenizer = load_tokenizer("gpt2")
    with open(path, encoding="utf-8") as lines:
        return np.array([len(tokenizer.encode_document(json.loads(line)["text"])) for line in lines], np.int64)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Return where documents that follow each other begin."""
    return np.cumsum(lengths) - lengths


def split_documents(plan, lengths: np.ndarray, row_length: int) -> int:
    """Return how many documents that fit into a row a plan's rows cut all the same."""
    runs, starts = plan.runs(np.arange(plan.num_rows)), starts_of(lengths)
    first = np.searchsorted(starts, runs.start, side="right") - 1
    inside = runs.start != starts[first]  # a run that begins within a document
    return int((lengths[np.unique(first[inside])] <= row_length).sum())


def plan_seconds(lengths: np.ndarray, row_length: int) -> float:
    """Return the processor seconds of a plan, the least of five."""
    starts, seconds = starts_of(lengths), []
    for _ in range(5):
        begin = time.process_time()
        best_fit_plan(starts, lengths, row_length)
        seconds.append(time.process_time() - begin)
    return min(seconds)


def peer_results(python: str, lengths: np.ndarray, row_length: int, bins: int) -> dict:
    """Return what grain's packers make of documents, cut to pieces of a row first."""
    pieces = cut_documents(starts_of(lengths), lengths, row_length)[1].tolist()
    given = json.dumps([pieces, row_length, bins])
    done = subprocess.run([python, "-c", PEER], input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000_000, help="in the resampled documents")
    parser.add_argument("--peer-python", metavar="PYTHON", help="of an environment with grain")
    args = parser.parse_args()
    root = os.environ.get("LM_REAL_DATA") or sys.exit("set $LM_REAL_DATA to the folder of real corpora")
    lengths = document_lengths(os.path.join(root, "web", "c4-1000.jsonl"))
    total = int(lengths.sum())
    print(f"{len(lengths):,} documents, {total:,} tokens, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}")
    many = np.random.default_rng(0).choice(lengths, int(args.tokens / lengths.mean()))
    print(f"plans of {len(many):,} documents with such lengths, {many.sum() / 1e6:.0f} Mtok\n")
    print(f"{'T':>5} {'rows':>6} {'bound':>6} {'padding':>8} {'split':>6} {'concat splits':>14} {'plan Mtok/s':>12}")
    for size in ROWS:
        plan = best_fit_plan(starts_of(lengths), lengths, size)
        concat = split_documents(concat_plan(total, size), lengths, size)
        rate = many.sum() / plan_seconds(many, size) / 1e6
        print(
            f"{size:>5} {plan.num_rows:>6} {-(-total // size):>6} {padding_fraction(plan, size):>8.2%} "
            f"{split_documents(plan, lengths, size):>6} {concat:>14} {rate:>12.0f}"
        )
        for bins in (16, 64) if args.peer_python else ():
            peer = peer_results(args.peer_python, lengths, size, bins)
            for name in ("first fit", "best fit"):
                rows, seconds = peer[name]["rows"], peer[name]["seconds"]
                print(
                    f"      grain {peer['version']} {name}, {bins} bins: {rows} rows, padding "
                    f"{1 - total / (rows * size):.2%}, {total / seconds / 1e6:.2f} Mtok/s, ratio {rate / (total / seconds / 1e6):.0f}"
                )


if __name__ == "__main__":
    main()
