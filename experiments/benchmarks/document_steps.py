"""How fast the document steps are, and how much they change, beside datatrove, ftfy and py3langid as they come.

    LM_REAL_DATA=/path/to/data python -m experiments.benchmarks.document_steps [--peer-python PATH]

Texts: 1,000 pages of C4, the text of 39 pages of three crawls, four books, and 106 Wikipedia pages as wikitext. MB are
of UTF-8, seconds are of one process's CPU, the second of two passes (caches of words are filled). `--peer-python`: an
environment with datatrove, whose formatters read the same texts in this run.

Measured on 2 shared cores that other work used too, MB/s of one process:

| | c4 | crawls | books | wikitext |
|---|---|---|---|---|
| clean (datatrove's FTFYFormatter) | 10.2 (6.6) | 9.2 (4.0) | 17.3 (4.0) | 12.9 (5.6) |
| pii, phone numbers too (datatrove's PIIFormatter, without) | 25.4 (9.5) | 27.8 (13.6) | 29.9 (12.1) | 11.0 (9.7) |
| language (py3langid of the whole) | 2.8 (1.9) | 6.7 (3.2) | 1,287 (4.3) | 57 (4.5) |
| decontamination, 1.7 million n-grams | 4.6 | 6.8 | 7.6 | 7.9 |
| quality | 6.0 | 7.4 | 15.8 | 7.8 |

ftfy was given 15 of the 1,149 documents, 40 of their lines, of which 25 changed; it would change no line that it was
not given. No document of these is dropped by decontamination.
"""

import argparse
import bz2
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence

from experiments.benchmarks.quality_classifier import crawls
from lm.corpus.clean import Clean
from lm.corpus.config import QualityConfig
from lm.corpus.decontamination import SUFFIX, Decontamination, build_index
from lm.corpus.language import Language
from lm.corpus.optional import require
from lm.corpus.pii import Pii
from lm.corpus.quality import Quality, train_classifier
from lm.corpus.record import Record

_PEER = """
import json, sys, time
import datatrove.utils.text
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
texts = json.load(open(sys.argv[1]))
out = {}
for name, make in (("FTFYFormatter", FTFYFormatter), ("PIIFormatter", PIIFormatter)):
    formatter = make()
    start = time.process_time()
    for text in texts:
        formatter.format(text)
    out[name] = time.process_time() - start
print(json.dumps(out))
"""


def corpora(folder: str) -> dict[str, list[str]]:
    """Return the texts by kind."""
    with open(os.path.join(folder, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        texts = {"c4": [json.loads(line)["text"] for line in file], "crawls": crawls(folder), "books": []}
    for path in sorted(glob.glob(os.path.join(folder, "books", "*.txt"))):
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            texts["books"].append(file.read())
    with bz2.open(os.path.join(folder, "wiki", "enwiki-pages-articles1-shortened.xml.bz2")) as file:
        elements = (element for _, element in ElementTree.iterparse(file) if element.tag.endswith("}text"))
        texts["wikitext"] = [e.text for e in elements if e.text and not e.text.lower().startswith("#redirect")]
    return texts


def run(make: Callable, texts: Sequence[str]) -> tuple[float, str]:
    """Return a step's CPU seconds of its second pass, and what it rejected and changed."""
    for _ in range(2):
        step, records = make(), [Record(str(number), text) for number, text in enumerate(texts)]
        start = time.process_time()
        rejected = sum(step(record) is not None for record in records)
        taken = time.process_time() - start
    return taken, f"{rejected} rejected; " + ", ".join(f"{name} {count}" for name, count in step.counts.most_common(6))


def as_it_comes(function: Callable, texts: Sequence[str]) -> float:
    """Return the CPU seconds of a library's function."""
    start = time.process_time()
    for text in texts:
        function(text)
    return time.process_time() - start


def of_peer(python: str, texts: Sequence[str]) -> dict[str, float]:
    """Return the CPU seconds of datatrove's formatters."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        done = subprocess.run([python, "-c", _PEER, file.name], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="Python of an environment with datatrove and ftfy")
    args = parser.parse_args()
    folder = os.environ.get("LM_REAL_DATA") or sys.exit("set $LM_REAL_DATA to the folder of real corpora")
    texts_of = corpora(folder)
    langid = require("py3langid.langid")
    whole = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True).classify
    classifier = train_classifier(texts_of["wikitext"], texts_of["c4"], QualityConfig())  # only its speed is looked at
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(glob.glob(os.path.join(folder, "eval", "**", "*.jsonl"), recursive=True))
        paths += glob.glob(os.path.join(folder, "eval", "*.bz2"))
        index = os.path.join(scratch, "index")
        build_index({"paths": paths, "words": 13}, index, lambda done: None)
        for kind, texts in texts_of.items():
            size = sum(len(text.encode()) for text in texts) / 1e6
            steps = {
                "clean": lambda kind=kind: Clean("web" if kind in ("c4", "crawls") else "prose"),
                "pii": Pii,
                "language": lambda: Language(("en",)),
                "decontamination": lambda: Decontamination(index + SUFFIX),
                "quality": lambda: Quality(classifier),
            }
            taken = {}
            print(f"{kind}: {len(texts)} documents, {size:.1f} MB")
            for name, make in steps.items():
                taken[name], about = run(make, texts)
                print(f"  {name:16} {size / taken[name]:7.1f} MB/s  {about}", flush=True)
            peers = {"language: py3langid of the whole": ("language", as_it_comes(whole, texts))}
            if args.peer_python:
                peer = of_peer(args.peer_python, texts)
                peers["clean: datatrove's FTFYFormatter"] = ("clean", peer["FTFYFormatter"])
                peers["pii: datatrove's PIIFormatter"] = ("pii", peer["PIIFormatter"])
            for name, (step, peer_seconds) in peers.items():
                print(
                    f"  {name:34} {size / peer_seconds:6.1f} MB/s, ours {peer_seconds / taken[step]:.1f} times as fast"
                )


if __name__ == "__main__":
    main()
