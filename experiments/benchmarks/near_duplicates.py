"""Near-duplicates: what MinHash finds beside exact Jaccard similarity, signatures' speed beside its peers', memory.

  python -m experiments.benchmarks.near_duplicates --data $LM_REAL_DATA \
      --datatrove-python DATATROVE/bin/python --datasketch-python DATASKETCH/bin/python
  python -m experiments.benchmarks.near_duplicates --memory 1000000

The pairs are paragraphs of two editions of one book (Project Gutenberg 1661): blocks between blank lines of more than
200 characters, line ends of two counted, as they stand in the files. "True" pairs come from sets of word tuples, all
against all, without hashing. Each peer makes signatures of the same texts in a process of its own, the fastest of
some rounds counts, in CPU seconds; rensa is compared if it is installed here (`pip install rensa`).

Measured on 2 shared cores (load 4 to 8, datatrove 0.10.1, rensa 0.5.0, datasketch 2.0.0). All 843 pairs by words as
they stand are found, and all 846 by normalized words, with 11 candidates beside the 837 texts that are the same. Among
3,019 texts and copies with up to 5 % of the words replaced, 1,672 pairs of at least 0.8: 14 x 8 finds 1,660 with 1,629
candidates, 20 x 6 all with 2,045; verified pairs are all true. Signatures of 6.34 MB: 8.0 MB/s with 20 x 6 and 9.5 with
14 x 8, 11.1 and 10.2 once all words are known, rensa 21.7 and datasketch 3.1 (of texts normalized before), datatrove
0.36. So 14 x 8 takes 1/27 of datatrove's time, 20 x 6 1/22, 1/31 once words are known; start and reading included 1/20
and 1/19; the whole stage from records to files, start included, 1/18. Memory: `lm.corpus.dedup.stages`.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np

from lm.corpus.config import CorpusConfig, DedupConfig, SourceConfig
from lm.corpus.dedup import near, resolve
from lm.corpus.dedup.arrays import document_ids, read_arrays, write_arrays
from lm.corpus.dedup.minhash import MinHash, s_curve
from lm.corpus.dedup.shingles import find_words, normalize, shingles
from lm.corpus.dedup.stages import dedup
from lm.corpus.part import Part
from lm.corpus.record import SUFFIX, Record, write_records

OURS = (20, 6)  # bands, rows
SHAPES = ((14, 8), (16, 6), OURS, (20, 5))  # the first is FineWeb's
EDITIONS = ("sherlock.1661.txt", "sherlock.old-advsh12.txt")
BOOKS = (*EDITIONS, "pride_and_prejudice.txt", "war_and_peace.2600-0.txt")
SYNTHETIC_WORDS = 500  # shingles of a synthetic document

DATATROVE = """
import json, sys, time
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
texts = json.load(open(sys.argv[1]))
step = MinhashDedupSignature(sys.argv[1] + ".out", MinhashConfig())
step.get_signature(step.get_shingles("a word more than five of them"))
start = time.process_time()
for text in texts:
    found = step.get_shingles(text)
    if found.size:
        step.get_signature(found)
print(json.dumps([time.process_time() - start, time.process_time()]))
"""
DATATROVE_STAGE = """
import json, sys, time
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.readers import JsonlReader
folder = sys.argv[1]
steps = [JsonlReader(folder + "/in"), MinhashDedupSignature(folder + "/signatures", MinhashConfig())]
LocalPipelineExecutor(steps, tasks=1, logging_dir=folder + "/logs").run()
print(json.dumps([time.process_time()]))
"""
DATASKETCH = """
import json, sys, time
from datasketch import MinHash
import xxhash
texts = json.load(open(sys.argv[1]))
start = time.process_time()
for text in texts:  # normalized already
    words = text.encode().split()
    grams = {b" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
    MinHash(num_perm=112, scheme="affine64", hashfunc=xxhash.xxh3_64_intdigest).update_batch(grams)
print(json.dumps([time.process_time() - start, time.process_time()]))
"""
RENSA = """
import json, sys, time
from rensa import RMinHash
texts = json.load(open(sys.argv[1]))
start = time.process_time()
for text in texts:  # normalized already
    words = text.split()
    RMinHash(112, 1).update([" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))])
print(json.dumps([time.process_time() - start, time.process_time()]))
"""


def blocks(path: str) -> list[str]:
    with open(path, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    return [block for block in re.split(r"\r\n\s*\r\n", text) if len(block.strip()) > 200]


def read_web(data: str) -> list[str]:
    with open(os.path.join(data, "web", "c4-1000.jsonl")) as file:
        return [json.loads(line)["text"] for line in file]


def true_pairs(texts: list[list[str]], words: Callable[[str], list[str]], threshold: float) -> set[tuple[str, str]]:
    """Return ids `edition:number` of the pairs, of different editions, at or above the threshold."""
    sets = [[_tuples(words(text)) for text in some] for some in texts]
    holders: dict[tuple, list[int]] = {}
    for number, some in enumerate(sets[1]):
        for gram in some:
            holders.setdefault(gram, []).append(number)
    out = set()
    for number, some in enumerate(sets[0]):
        shared = Counter(other for gram in some for other in holders.get(gram, ()))
        for other, count in shared.items():
            if count / (len(some) + len(sets[1][other]) - count) >= threshold:
                out.add((f"0:{number}", f"1:{other}"))
    return out


def _tuples(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def recall(data: str) -> None:
    editions = [blocks(os.path.join(data, "books", name)) for name in EDITIONS]
    as_they_stand = true_pairs(editions, str.split, 0.8)
    print(
        f"\n{len(editions[0])} and {len(editions[1])} paragraphs of two editions; "
        f"{len(as_they_stand)} pairs by words as they stand"
    )
    found = compare(editions)
    print(f"of the {len(as_they_stand)} pairs found: {len(as_they_stand & found)}")
    texts = read_web(data) + blocks(os.path.join(data, "books", "pride_and_prejudice.txt")) + editions[0]
    print(f"\n{len(texts)} texts and copies with 0 to 5 % of the words replaced")
    compare([texts, [noised(text, number) for number, text in enumerate(texts)]])


def noised(text: str, seed: int) -> str:
    """Return a text with some of its words replaced; Jaccard similarities lie between 0.6 and 1."""
    chance = random.Random(seed)
    share = chance.uniform(0, 0.05)
    return " ".join(f"zq{chance.random()}" if chance.random() < share else word for word in text.split())


def compare(texts: list[list[str]]) -> set[tuple[str, str]]:
    """Print what each shape finds between two lists of texts; return the pairs found by ours."""
    true = true_pairs(texts, lambda text: normalize(text).split(), 0.8)
    print(f"pairs of Jaccard >= 0.8 by normalized words: {len(true)}")
    print(
        "bands x rows  same text  candidates  verified  true pairs found    precision: candidates, verified   seconds"
    )
    kept = set()
    for bands, rows in SHAPES:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as work:
            about = deduplicate(work, texts, bands, rows)
            seconds = time.process_time() - start
            verified, same = _verified(work)
        across = {pair for pair in verified if pair[0][0] != pair[1][0]}
        print(
            f"{f'{bands} x {rows}':12} {same:10} {about['candidates']:11} {about['verified']:9}"
            f" {f'{len(true & across)}/{len(true)}':>12} {len(true & across) / len(true):6.2%}"
            f" {about['verified'] / about['candidates']:12.1%} {len(across & true) / len(across):18.1%} {seconds:11.1f}"
        )
        if (bands, rows) == OURS:
            kept = across
    return kept


def deduplicate(work: str, texts: list[list[str]], bands: int, rows: int) -> dict:
    parts = []
    for number, some in enumerate(texts):
        prefix = os.path.join(work, f"edition-{number}")
        write_records(
            prefix + SUFFIX, [Record(f"{number}:{n}", text, f"edition{number}") for n, text in enumerate(some)]
        )
        parts.append(Part(prefix, f"edition{number}", str(number), len(some), sum(map(len, some))))
    options = DedupConfig(bands=bands, rows=rows, partitions=1, paragraphs=False)
    config = CorpusConfig(sources={part.source: SourceConfig() for part in parts}, dedup=options)
    return dedup(work, parts, config, run).about


def run(stage: str, tasks: list) -> list[dict]:
    for task in tasks:
        os.makedirs(os.path.dirname(task.out), exist_ok=True)
    return [task.run() for task in tasks]


def _verified(work: str) -> tuple[set[tuple[str, str]], int]:
    """Return the pairs that were verified and those of the same text, and how many these are."""
    found = read_arrays(os.path.join(work, "dedup", "verify", "00000.npz"))
    same = read_arrays(os.path.join(work, "dedup", "join", "00000-exact.npz"))
    ends = [np.concatenate(both) for both in ((found["a"], same["first"]), (found["b"], same["other"]))]
    names = [[f"{int(i) >> 32}:{int(i) & 0xFFFFFFFF}" for i in some] for some in ends]
    # Near duplicates are sought among first texts: the same text's pairs are those of its first.
    names_of = {other: first for first, other in zip(*(n[len(found["a"]) :] for n in names), strict=True)}
    pairs = set(zip(*names, strict=True))
    copies: dict[str, list[str]] = {}
    for other, first in names_of.items():
        copies.setdefault(first, [first]).append(other)
    for a, b in list(pairs):
        pairs |= {
            tuple(sorted(pair)) for pair in product(copies.get(a, [a]), copies.get(b, [b])) if len(set(pair)) == 2
        }
    return pairs, len(same["first"])


def ours(path: str, bands: int, rows: int) -> None:
    with open(path) as file:
        texts = json.load(file)
    hasher = MinHash(bands, rows)
    times = []
    for _ in range(2):  # the second time all words are known, as they are after some hundred MB
        start = time.process_time()
        for at in range(0, len(texts), 400):
            found = shingles(find_words(texts[at : at + 400]), 5)
            hasher.band_keys(np.stack([hasher.signature(some) for some in found]))
        times.append(time.process_time() - start)
    print(json.dumps([times[0], time.process_time() - times[1], times[1]]))


def our_stage(folder: str) -> None:
    options = {"bands": 20, "rows": 6, "words": 5, "seed": 1}
    arguments = {"part": f"{folder}/part", "index": 0, "partitions": 4, "documents": True, "near": options}
    near.signatures(arguments | {"paragraphs": None}, f"{folder}/ours", lambda done: None)
    print(json.dumps([time.process_time()]))


def speed(data: str, datatrove: str | None, datasketch: str | None, rounds: int) -> None:
    texts = read_web(data)
    for name in BOOKS:
        texts += blocks(os.path.join(data, "books", name))
    size = sum(len(text.encode()) for text in texts)
    print(f"\n{len(texts)} texts, {size / 1e6:.2f} MB, in CPU seconds (MB/s), the best of {rounds} rounds")
    module = [sys.executable, "-m", "experiments.benchmarks.near_duplicates"]
    with tempfile.TemporaryDirectory() as folder:
        plain, normalized = f"{folder}/plain.json", f"{folder}/normalized.json"
        for path, some in ((plain, texts), (normalized, [normalize(text) for text in texts])):
            with open(path, "w") as file:
                json.dump(some, file)
        records = [Record(str(number), text) for number, text in enumerate(texts)]
        write_records(f"{folder}/part{SUFFIX}", records)
        os.mkdir(f"{folder}/in")
        with open(f"{folder}/in/part.jsonl", "w") as file:
            file.writelines(json.dumps({"id": record.id, "text": record.text}) + "\n" for record in records)
        sides = {
            "ours, 20 x 6": [*module, "--ours", "20", "6", plain],
            "ours, 14 x 8": [*module, "--ours", "14", "8", plain],
            "rensa, 112": [importlib.util.find_spec("rensa") and sys.executable, "-c", RENSA, normalized],
            "datasketch, 112": [datasketch, "-c", DATASKETCH, normalized],
            "datatrove, 14 x 8": [datatrove, "-c", DATATROVE, plain],
            "ours, the stage": [*module, "--our-stage", folder],
            "datatrove, the stage": [datatrove, "-c", DATATROVE_STAGE, folder],
        }
        sides = {name: command for name, command in sides.items() if command[0]}
        answers: dict[str, list] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, command in sides.items():
                shutil.rmtree(f"{folder}/logs", ignore_errors=True)  # datatrove does nothing twice
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                answers[name].append(json.loads(out.stdout.splitlines()[-1]))
    best = {name: np.min(some, axis=0).tolist() for name, some in answers.items()}
    columns = ("signatures", "with start, reading", "all words known")
    print(f"{'':22}", *(f"{column:>22}" for column in columns))
    for name, seconds in best.items():
        cells = [f"{some:.2f} ({size / 1e6 / some:.1f})" for some in seconds]
        if "stage" in name:
            cells = ["", *cells]
        print(f"{name:22}", *(f"{cell:>22}" for cell in cells))
    if datatrove:
        other = best["datatrove, 14 x 8"]
        for shape in ("14 x 8", "20 x 6"):
            mine = best[f"ours, {shape}"]
            print(
                f"signatures, {shape}: {other[0] / mine[0]:.1f}x datatrove, all words known {other[0] / mine[2]:.1f}x, "
                f"start and reading included {other[1] / mine[1]:.1f}x"
            )
        stage = best["datatrove, the stage"][0] / best["ours, the stage"][0]
        print(f"the stage, from records to files, start included: {stage:.1f}x")


def memory(documents: int) -> None:
    """Print what the tasks hold at their peak, over synthetic hashes of so many documents, a fifth of them copies."""
    chance, bands, per_part = np.random.default_rng(0), 20, 10_000
    parts = -(-documents // per_part)
    with tempfile.TemporaryDirectory() as work:
        for part in range(parts):
            texts = chance.integers(0, 2**64, per_part, np.uint64)
            keys = chance.integers(0, 2**64, (per_part, bands), np.uint64)
            texts[::10] = np.arange(per_part // 10, dtype=np.uint64) + np.uint64(part // 5 * per_part)  # five of a text
            near_copies = np.arange(5, per_part, 10)  # two alike, in half of their bands
            keys[near_copies, :10] = (near_copies[:, None] * bands + np.arange(10) + part // 2 * 10**9).astype(
                np.uint64
            )
            keys[::10] = texts[::10, None] * np.uint64(31) + np.arange(bands, dtype=np.uint64)
            ids = document_ids(part, np.arange(per_part))
            flat = [keys.ravel(), np.repeat(ids, bands), np.repeat(texts, bands)]
            write_arrays(f"{work}/s{part:05d}-00000.npz", bands=np.stack(flat), texts=np.stack((texts, ids)))
            lengths = chance.integers(100, 9999, per_part)
            write_arrays(f"{work}/s{part:05d}-documents.npz", quality=np.zeros(per_part), length=lengths)
        starts = list(range(parts))
        joined = {"signatures": f"{work}/s", "parts": parts, "partition": 0, "verifiers": 4, "group_starts": starts}
        stats, peak = measured(near.join, joined, f"{work}/j00000")
        rows = parts * per_part * bands
        print(f"join: {rows} rows, {stats}; peak {peak / 2**20:.0f} MiB, {peak / rows:.1f} bytes per row of 24")
        for verifier in range(4):
            pairs = read_arrays(f"{work}/j00000-pairs-{verifier:05d}.npz")
            wanted = np.unique(np.concatenate((pairs["a"], pairs["b"])))[:50_000]
            inside = np.isin(pairs["a"], wanted) & np.isin(pairs["b"], wanted)
            write_arrays(f"{work}/j00000-pairs-{verifier:05d}.npz", **{name: pairs[name][inside] for name in pairs})
            held = np.sort(chance.integers(0, 2**64, (len(wanted), SYNTHETIC_WORDS), np.uint64), axis=1)
            sizes = np.full(len(wanted), SYNTHETIC_WORDS)
            write_arrays(f"{work}/e00000-{verifier:05d}.npz", ids=wanted, sizes=sizes, shingles=held.ravel())
            verify = {"verifier": verifier, "joins": f"{work}/j", "partitions": 1, "extracts": f"{work}/e", "groups": 1}
            stats, peak = measured(near.verify, verify | {"threshold": 0.8}, f"{work}/v{verifier:05d}")
            if not verifier:
                print(f"verify: {held.nbytes / 2**20:.0f} MiB of shingles, {stats}; peak {peak / 2**20:.0f} MiB")
            write_arrays(f"{work}/v{verifier:05d}.npz", **pairs, jaccard=np.ones(len(pairs["a"])))
        cluster = {"joins": f"{work}/j", "partitions": 1, "verifies": f"{work}/v", "verifiers": 4, "examples": 20}
        cluster |= {"signatures": f"{work}/s", "sources": ["web"] * parts, "group_starts": starts}
        stats, peak = measured(resolve.cluster, cluster, f"{work}/c")
        members = sum(int(size) * count for size, count in stats["sizes"].items())
        edges = stats["pairs"] + len(read_arrays(f"{work}/j00000-exact.npz")["first"])
        print(
            f"cluster: {members} members, {edges} edges; peak {peak / 2**20:.0f} MiB, {peak / members:.0f} bytes each"
        )


def measured(function, arguments: dict, out: str) -> tuple[dict, int]:
    """Return a task's stats, and the bytes that it held at its peak beside what its process held before (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments, out))


def _measured(function, arguments: dict, out: str) -> tuple[dict, int]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = _status("VmRSS")
    stats = function(arguments, out, lambda done: None)
    return stats, _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LM_REAL_DATA"))
    parser.add_argument("--datatrove-python", help="of an environment with datatrove, spaCy and xxhash 3")
    parser.add_argument("--datasketch-python", help="of an environment with datasketch and xxhash")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, help="measure memory over so many synthetic documents instead")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--our-stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        bands, rows, path = arguments.ours
        return ours(path, int(bands), int(rows))
    if arguments.our_stage:
        return our_stage(arguments.our_stage)
    if arguments.memory:
        return memory(arguments.memory)
    if arguments.data is None:
        parser.error("--data: name the folder of real corpora, or set $LM_REAL_DATA")
    print("probability of a pair to become a candidate, by Jaccard similarity")
    similarities = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
    print("bands x rows", *(f"{s:8}" for s in similarities))
    for bands, rows in SHAPES:
        print(f"{f'{bands} x {rows}':12}", *(f"{p:8.5f}" for _, p in s_curve(bands, rows, similarities)))
    recall(arguments.data)
    speed(arguments.data, arguments.datatrove_python, arguments.datasketch_python, arguments.rounds)


if __name__ == "__main__":
    main()
