"""The corpus pipeline's speed on one core, stage by stage, beside datatrove's on the same files in one run.

    LM_REAL_DATA=DIR python -m experiments.benchmarks.data_pipeline --peer-python path/to/python-with-datatrove

Ours also needs `pip install mwxml mwparserfromhell`, and DIR/tiktoken_cache GPT-2's two files. The peer's: `pip install datatrove spacy tokenizers trafilatura orjson "xxhash<4"`. Each side is a process of
its own and they take turns; CPU seconds, so that a noisy neighbour counts little; the ratio is the median of the
rounds' ratios. What loads at first use is loaded before the clock starts, except in the chain.

- wiki: a Wikipedia dump (bz2) to plain text. datatrove reads no dumps: the peers are mwxml with mwparserfromhell's
  `strip_code`, in our environment, and with --wikiextractor-python wikiextractor (one process, its start counted).
  Neither drops disambiguation pages.
- web: WARC files to text. Ours reads and decompresses the files and finds the encoding; datatrove's is Trafilatura on
  the decoded pages alone, without its process per document. It has no resiliparse.
- filters: FineWeb's four (Gopher's repetition and quality, C4's, FineWeb's) on c4-1000.
- minhash: signatures of 14 x 8 hashes over 5-grams of words, on c4-1000.
- tokenize: GPT-2's, on c4-1000; one thread.
- chain: filters, near duplicates and GPT-2 tokens of c4-1000 in one worker, from the file to shards: `lm data build`
  against datatrove's executor. The whole process tree, starts and imports and all files between stages counted.

Counts, ours and the peer's, are documents that are left, for `tokenize` and `chain` tokens with one end-of-text each.
Prints Markdown, then one JSON object.

Two CPU cores, nothing else running, Python 3.11, datatrove 0.10.1, trafilatura 1.11, spaCy 3.8, wikiextractor 3.1; one
round, MB/s of one core's CPU time, ours against the peer's: wiki 4.15 against mwparserfromhell's 1.47 (2.8 times) and
wikiextractor's 3.48 (1.2); web 24.3 against 1.98 (12.3); filters 3.17 against 0.16 (19.5), 717 documents left by both;
minhash 6.8 against 0.49 (13.8); tokenize 14.5 against 3.05 (4.8), 481,027 tokens by both; chain 0.76 against 0.10 (7.6),
415,362 tokens left against 414,645.
"""

import argparse
import bz2
import glob
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

SIDES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data_pipeline_sides.py")
_GPT2 = ("encoder.json", "vocab.bpe")  # at this address; a tiktoken cache names them by its hash
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_CHAIN = """
from lm.corpus.config import default, source

def get_config():
    config = default()
    config.sources.web = source(reader="jsonl", paths=({path!r},), filters={filters!r}, clean="none", paragraphs=False)
    config.dedup.paragraphs = False
    config.tokenizer = "gpt2"
    config.validation_fraction = 0.0
    return config
"""


def inputs_of(root: str, folder: str) -> dict[str, Any]:
    """Return what all sides work on: texts, decoded pages, and the paths of files."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    with open(os.path.join(root, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    warcs, pages = sorted(glob.glob(os.path.join(root, "web", "*.warc.gz"))), []
    for path in warcs:
        with open(path, "rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=True):
                if "html" in (record.http_content_type or ""):
                    content = record.reader.read()
                    pages.append(bytes_to_str(content, detect_encoding(content)))
    cache = os.path.join(root, "tiktoken_cache")
    return {
        "texts": texts,
        "pages": pages,
        "warcs": warcs,
        "dumps": glob.glob(os.path.join(root, "wiki", "*.xml.bz2")),
        "gpt2": [os.path.join(cache, hashlib.sha1((_GPT2_URL + name).encode()).hexdigest()) for name in _GPT2],
        "tokenizer": os.path.join(folder, "tokenizer.json"),
        "folder": folder,
    }


def megabytes(inputs: dict[str, Any]) -> dict[str, float]:
    """Return the size of each stage's input: XML, HTML and text, uncompressed."""
    text = sum(len(text.encode()) for text in inputs["texts"])
    xml = 0
    for path in inputs["dumps"]:
        with bz2.open(path) as file:
            xml += len(file.read())
    html = sum(len(page.encode()) for page in inputs["pages"])
    sizes = {"wiki": xml, "web": html, "filters": text, "minhash": text, "tokenize": text, "chain": text}
    return {stage: size / 1e6 for stage, size in sizes.items()}


def timed(command: list[str], **environment: str) -> dict[str, float]:
    """Run a command; return CPU `seconds` of its whole process tree, and `wall` seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"data_pipeline: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": cpu, "wall": time.monotonic() - start, "count": None}


def side(name: str, python: str, inputs_file: str, folder: str) -> dict[str, dict]:
    """Return a side's CPU seconds and counts by stage."""
    out = os.path.join(folder, f"{name}.json")
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": "" if name == "datatrove" else os.getcwd()}
    timed([python, SIDES, name, inputs_file, out], **environment)
    with open(out) as file:
        return json.load(file)


def chain_of_ours(documents: str, root: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "chain.py")
        with open(config, "w") as file:
            from experiments.benchmarks.data_pipeline_sides import FILTERS

            file.write(_CHAIN.format(path=documents, filters=FILTERS))
        command = [
            sys.executable,
            "-m",
            "lm",
            "data",
            "build",
            "--config",
            config,
            "--out",
            os.path.join(folder, "out"),
        ]
        cache = {"TIKTOKEN_CACHE_DIR": os.path.join(root, "tiktoken_cache"), "LM_CACHE": os.path.join(folder, "cache")}
        result = timed([*command, "--workers", "1"], **cache)
        with open(os.path.join(folder, "out", "card.json")) as file:
            tokens = sum(split["tokens"] for split in json.load(file)["splits"].values())
        return {**result, "count": tokens}


def chain_of_datatrove(documents: str, python: str, inputs: dict[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        os.link(inputs["tokenizer"], os.path.join(folder, "tokenizer.json"))
        environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
        result = timed([python, SIDES, "datatrove-chain", documents, folder], **environment)
        tokens = sum(os.path.getsize(path) for path in glob.glob(os.path.join(folder, "tokens", "*.ds"))) // 2
        return {**result, "count": tokens}


def wikiextractor(python: str, inputs: dict[str, Any]) -> dict[str, float]:
    total = {"seconds": 0.0, "wall": 0.0, "count": None}
    for path in inputs["dumps"]:
        with tempfile.TemporaryDirectory() as folder:
            one = timed([python, "-m", "wikiextractor.WikiExtractor", "--processes", "1", "-q", "-o", folder, path])
        total = {**total, **{key: total[key] + one[key] for key in ("seconds", "wall")}}
    return total


def show(rounds: list[dict[str, dict]], sizes: dict[str, float]) -> dict[str, Any]:
    """Print medians, and return them."""
    rows = []
    for stage, size in sizes.items():
        if stage not in rounds[0].get("ours", {}):
            continue
        for peer in rounds[0]:
            if peer == "ours" or stage not in rounds[0][peer]:
                continue
            pairs = [(each["ours"][stage]["seconds"], each[peer][stage]["seconds"]) for each in rounds]
            rows.append(
                {
                    "stage": stage,
                    "peer": peer,
                    "megabytes": size,
                    "ours": statistics.median(size / a for a, _ in pairs),
                    "peer_speed": statistics.median(size / b for _, b in pairs),
                    "ratio": statistics.median(b / a for a, b in pairs),
                    "counts": [rounds[-1]["ours"][stage]["count"], rounds[-1][peer][stage]["count"]],
                }
            )
    print("| stage | MB | ours, MB/s | peer, MB/s | peer | ratio | counts |\n|---|---:|---:|---:|---|---:|---|")
    for row in rows:
        counts = " / ".join("-" if count is None else f"{count:,}" for count in row["counts"])
        print(
            f"| {row['stage']} | {row['megabytes']:.2f} | {row['ours']:.2f} | {row['peer_speed']:.2f} | {row['peer']} "
            f"| {row['ratio']:.1f} | {counts} |"
        )
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with datatrove; leave out to run ours alone")
    parser.add_argument("--wikiextractor-python", help="an interpreter with wikiextractor")
    parser.add_argument("--data", default=os.environ.get("LM_REAL_DATA"), help="folder of real corpora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-chain", action="store_true", help="single stages only")
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data: name the folder of real corpora, or set $LM_REAL_DATA")
    os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(args.data, "tiktoken_cache")
    documents = os.path.join(args.data, "web", "c4-1000.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        inputs, inputs_file = inputs_of(args.data, folder), os.path.join(folder, "inputs.json")
        with open(inputs_file, "w") as file:
            json.dump(inputs, file)
        pythons = {"ours": sys.executable, "mwparserfromhell": sys.executable, "datatrove": args.peer_python}
        rounds = []
        for number in range(args.rounds):
            names = [name for name, python in pythons.items() if python]
            results = {
                name: side(name, pythons[name], inputs_file, folder) for name in names[:: 1 if number % 2 else -1]
            }
            if args.wikiextractor_python:
                results["wikiextractor"] = {"wiki": wikiextractor(args.wikiextractor_python, inputs)}
            if not args.no_chain:
                results["ours"]["chain"] = chain_of_ours(documents, args.data)
                if args.peer_python:
                    results["datatrove"]["chain"] = chain_of_datatrove(documents, args.peer_python, inputs)
            rounds.append(results)
        print(json.dumps(show(rounds, megabytes(inputs)) | {"rounds": rounds}))


if __name__ == "__main__":
    main()
