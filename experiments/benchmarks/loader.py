"""How fast the data loader is: raw shard reads, pack plans, packed batches.

    python -m experiments.benchmarks.loader

Builds a synthetic shard of 50 million uint16 tokens in a temporary folder: random tokens in documents whose
lengths are log-normal (median 266, mean about 490 tokens, like C4's in GPT-2 tokens). One process, one thread;
files come from the page cache. Each figure is the best of a few runs.

Measured on 2 shared CPU cores, Python 3.11, numpy 2.4, in Mtok/s:

    raw shard read, in order, to int32              3097
    raw shard read, random rows of 1024              897
    best_fit plan, T=128   padding 0.010%           2766
    best_fit plan, T=1024  padding 0.006%           3421
    packed batches, concat   T=128   B=512            54
    packed batches, best_fit T=128   B=512            55
    packed batches, concat   T=1024  B=64             67
    packed batches, best_fit T=1024  B=64             75

A packed batch is six [B, T] arrays (inputs, targets, weights, segment ids, positions, target bytes).
"""

import argparse
import json
import os
import tempfile
import time

import numpy as np

from lm.data.build import assemble_manifest
from lm.data.dataset import MANIFEST, TOKENIZER, open_data
from lm.data.loader import Loader
from lm.data.packing import best_fit_plan, padding_fraction
from lm.data.shards import Shard, ShardWriter, token_dtype
from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer, save


def synthetic_folder(folder: str, num_tokens: int) -> None:
    """Write a prepared folder with random documents of `num_tokens` tokens in all."""
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {bytes([high, low]): 256 + 64 * high + low for high in range(256) for low in range(64)}
    tokenizer = Tokenizer("synthetic", PATTERNS["gpt4"], ranks, {END_OF_TEXT: len(ranks)})
    save(tokenizer, os.path.join(folder, TOKENIZER))
    random = np.random.default_rng(0)
    writer = ShardWriter(
        folder, "train", token_dtype(tokenizer.vocab_size), tokenizer.eot_id, tokenizer.token_bytes, num_tokens
    )
    written = 0
    while written < num_tokens:
        length = min(1 + int(random.lognormal(np.log(266), 1.1)), num_tokens - written)
        document = random.integers(0, len(ranks), length, dtype=np.uint32)
        document[0] = tokenizer.eot_id
        writer.add(document)
        written += length
    entries = {"train": writer.close()}
    manifest = assemble_manifest(entries, tokenizer=tokenizer, source={"name": "synthetic"}, fractions=(0.0, 0.0))
    with open(os.path.join(folder, MANIFEST), "w") as file:
        json.dump(manifest, file)


def best_seconds(function, repeats: int) -> float:
    """Return the shortest of some timings."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def raw_reads(shard: Shard, row_length: int = 1024) -> None:
    """Print how fast tokens leave the mapped file: in order, and as random rows."""
    copied = np.empty(len(shard.tokens), np.int32)
    rate = len(copied) / best_seconds(lambda: np.copyto(copied, shard.tokens), 3) / 1e6
    print(f"raw shard read, in order, to int32           {rate:9.1f} Mtok/s")
    starts = np.random.default_rng(0).integers(0, shard.num_tokens - row_length, 8192)
    rows = np.empty((len(starts), row_length), shard.tokens.dtype)

    def read() -> None:
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = shard.tokens[start : start + row_length]

    rate = rows.size / best_seconds(read, 3) / 1e6
    print(f"raw shard read, random rows of {row_length}          {rate:9.1f} Mtok/s")


def pack_plan(shard: Shard, row_length: int) -> None:
    """Print how fast the best-fit plan is made, and what it pads."""
    starts, lengths = shard.starts, shard.lengths
    rate = shard.num_tokens / best_seconds(lambda: best_fit_plan(starts, lengths, row_length), 3) / 1e6
    padding = padding_fraction(best_fit_plan(starts, lengths, row_length), row_length)
    print(f"best_fit plan, T={row_length:<5} padding {padding:.3%}       {rate:9.1f} Mtok/s")


def packed_batches(folder: str, packing: str, row_length: int, tokens_per_batch: int) -> None:
    """Print how fast whole batches (six arrays) are built."""
    batch_size = tokens_per_batch // row_length
    loader = Loader(open_data(folder), sequence_length=row_length, batch_size=batch_size, packing=packing)
    steps = iter(range(1_000_000))
    rate = tokens_per_batch / best_seconds(lambda: loader.batch(next(steps)), 30) / 1e6
    print(f"packed batches, {packing:8s} T={row_length:<5} B={batch_size:<5}     {rate:9.1f} Mtok/s")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="in the synthetic shard")
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="per batch (B·T)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        synthetic_folder(folder, args.tokens)
        shard = open_data(folder).shards("train")[0]
        raw_reads(shard)
        for row_length in (128, 1024):
            pack_plan(shard, row_length)
        for row_length in (128, 1024):
            for packing in ("concat", "best_fit"):
                packed_batches(folder, packing, row_length, args.batch_tokens)


if __name__ == "__main__":
    main()
