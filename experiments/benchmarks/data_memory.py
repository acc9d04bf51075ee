"""Peak memory of `lm data build` over corpora of 10 MB to 1 GB: it must not grow with them.

    LM_REAL_DATA=DIR python -m experiments.benchmarks.data_memory --sizes 10 100 1000

A corpus of S MB is half a Wikipedia dump, half web pages as JSON lines, grown from real ones by repetition with noise:
one word in ten is another one of the same text, so that copies are no near-duplicates (their 5-grams agree in 4 of 10),
and titles and ids are new. All stages: rendering, cleaning, language, FineWeb's filters, exact and near duplicates,
paragraphs, a tokenizer trained on it, shards. Two workers, parts of 4 MB, so that the smallest corpus has several.

Reports the largest process of the tree (the kernel's count) and the most that all of them held at one time (resident
pages, sampled every 0.1 s; pages that they share count in each). Prints Markdown, then one JSON object.

Two cores that seven others loaded: 10 MB: largest process 197 MB, all together 432 MB, 83 s; 100 MB: 237 MB, 498 MB,
425 s. Beside a few tests: 1,000 MB (170,890 documents kept): 340 MB, 760 MB, 630 s.
"""

import argparse
import bz2
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

_CONFIG = """
from lm.corpus.config import default, source

FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb_quality")

def get_config():
    config = default()
    config.sources.wiki = source(reader="wikipedia", paths=("{folder}/wiki.xml",), languages=("en",))
    config.sources.web = source(reader="jsonl", paths=("{folder}/web.jsonl",), languages=("en",), filters=FILTERS)
    config.part_bytes = 4 * 2**20
    return config
"""


def noisy(text: str, scatter: random.Random) -> str:
    """Return a text in which one word in ten is another one of its words."""
    words = re.split(r"( +)", text)  # line ends stay where they are
    places = range(0, len(words), 2)
    for place in scatter.sample(places, len(places) // 10):
        words[place] = words[scatter.choice(places)]
    return "".join(words)


def write_corpus(root: str, folder: str, size: int) -> None:
    """Write `wiki.xml` and `web.jsonl` of `size` bytes together."""
    scatter = random.Random(0)
    with open(os.path.join(root, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    with open(os.path.join(folder, "web.jsonl"), "w", encoding="utf-8") as out:
        while out.tell() < size // 2:
            out.write(json.dumps({"text": noisy(scatter.choice(texts), scatter)}, ensure_ascii=False) + "\n")
    dump = os.path.join(root, "wiki", "enwiki-pages-articles1-shortened.xml.bz2")
    with bz2.open(dump, "rt", encoding="utf-8") as file:
        head, *pages = file.read().rpartition("</mediawiki>")[0].split("<page>")
    with open(os.path.join(folder, "wiki.xml"), "w", encoding="utf-8") as out:
        out.write(head)
        number = 0
        while out.tell() < size // 2:
            number += 1
            page = scatter.choice(pages)
            text = re.search("<text[^>]*>(.*)</text>", page, re.DOTALL)
            if text is None:
                continue
            out.write(
                f"<page><title>Page {number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id>"
                f'<model>wikitext</model><text xml:space="preserve">{noisy(text[1], scatter)}</text></revision></page>\n'
            )
        out.write("</mediawiki>\n")


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and those under it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    yield from descendants(int(child))


def resident(pid: int) -> int:
    """Return bytes of a process's resident pages."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def build(config: str, out: str, workers: int) -> dict[str, float]:
    """Build a corpus; return `largest` and `together` in bytes, wall `seconds`, and the number of processes seen."""
    command = [sys.executable, "-m", "lm", "data", "build", "--config", config, "--out", out, "--workers", str(workers)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ended, most, seen = threading.Event(), 0, set()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.1):
            pids = list(descendants(process.pid))
            seen.update(pids)
            most = max(most, sum(map(resident, pids)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)  # of the process and of all that it waited for
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"data_memory: {' '.join(command)} ended with {process.returncode}; its error is above.")
    largest = usage.ru_maxrss * 1024
    return {"largest": largest, "together": most, "seconds": time.monotonic() - start, "processes": len(seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LM_REAL_DATA"), help="folder of real corpora")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB of raw input")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", help="where corpora and shards are put for a while; twice the largest is needed")
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data: name the folder of real corpora, or set $LM_REAL_DATA")
    rows = []
    print(
        "| input, MB | documents kept | largest process, MB | all together, MB | seconds |\n|---:|---:|---:|---:|---:|"
    )
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            write_corpus(args.data, folder, size * 10**6)
            config, out = os.path.join(folder, "corpus.py"), os.path.join(folder, "out")
            with open(config, "w") as file:
                file.write(_CONFIG.format(folder=folder))
            row = {"size": size, **build(config, out, args.workers)}
            with open(os.path.join(out, "card.json")) as file:
                row["documents"] = sum(split["documents"] for split in json.load(file)["splits"].values())
        rows.append(row)
        print(
            f"| {size:,} | {row['documents']:,} | {row['largest'] / 1e6:.0f} | {row['together'] / 1e6:.0f} "
            f"| {row['seconds']:.0f} |",
            flush=True,
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
