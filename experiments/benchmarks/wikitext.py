"""Wikitext to plain text: ours against mwparserfromhell's `strip_code`, and wikiextractor if there is one.

    python -m experiments.benchmarks.wikitext --dump DUMP.xml.bz2 [--wikiextractor PATH/TO/wikiextractor]

Needs `pip install mwparserfromhell`. Every article of a dump, rendered by each in the same process, in turns; both are given the wikitext that our reader
yields and parse it themselves. Markup left over is counted as it stands in the text: `[[`, `{{`, `thumb|`, `<ref`, `''`.
wikiextractor (AGPL, installed in an environment of its own) is a program of its own: it reads the XML too, is told to use one
process, and its time is that of the program and its children.

Measured on two shared CPU cores (AVX2), Python 3.11.7, mwparserfromhell 0.7.2, wikiextractor 3.1.0, on gensim's
206-page cut of an English dump of 2016 (98 articles, 5.7 MB of wikitext): ours 6.5 MB/s (again, quiet: 6.6 and 3.7 times strip_code), 0.08 marks per article, all
eight of them braces of TeX (0.00 without its mathematics); strip_code 1.5 MB/s, 9.7 per article, 911 of them
`thumb|`; wikiextractor, XML included, 2.7 MB/s, 0.02 per article, in 8 % less text.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable

from lm.corpus.config import SourceConfig
from lm.corpus.readers import wikipedia
from lm.corpus.readers.wikitext import Wikitext, render

MARKUP = ("[[", "{{", "thumb|", "<ref", "''")
_MATHEMATICS = re.compile(r"\$[^$\n]*\$")


def articles(dump: str) -> list[str]:
    """Return the wikitext of a dump's articles, redirects and disambiguation pages left out."""
    step, found = Wikitext(), []
    for record in wikipedia.read(dump, SourceConfig(reader="wikipedia"), lambda where, reason: print(where, reason)):
        text = record.text
        if step(record) is None:
            found.append(text)
    return found


def left_over(texts: list[str]) -> Counter[str]:
    """Count markup in texts."""
    return Counter({mark: sum(text.count(mark) for text in texts) for mark in MARKUP})


def strip_code(text: str) -> str:
    """Render as mwparserfromhell does."""
    import mwparserfromhell

    return str(mwparserfromhell.parse(text).strip_code())


def timed(render_one: Callable[[str], str], texts: list[str]) -> tuple[float, list[str]]:
    """Return the seconds of CPU time that rendering all texts took, and the results."""
    start = time.process_time()
    rendered = [render_one(text) for text in texts]
    return time.process_time() - start, rendered


def extracted(program: str, dump: str) -> tuple[float, list[str]]:
    """Return the same of wikiextractor, without its pages of one line: redirects and disambiguation."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [program, "--json", "--processes", "1", "-q", "-b", "1G", "-o", folder, dump]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        texts = []
        for at, _, names in os.walk(folder):
            for name in names:
                with open(os.path.join(at, name), encoding="utf-8") as file:
                    texts += [json.loads(line)["text"] for line in file]
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, [text for text in texts if text.strip()]


def describe(name: str, seconds: float, texts: list[str], megabytes: float, reference: float) -> None:
    """Print a line of the table."""
    left = left_over(texts)
    per_article = sum(left.values()) / len(texts)
    marks = ", ".join(f"{mark} {count}" for mark, count in left.items() if count) or "nothing"
    print(
        f"{name:14} {megabytes / seconds:6.2f} MB/s  {reference / seconds:5.2f}x  {len(texts)} articles, "
        f"{sum(map(len, texts)):,} characters, left over {per_article:.3f} per article ({marks})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dump", required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--wikiextractor", help="the program, of an environment of its own")
    arguments = parser.parse_args()

    texts = articles(arguments.dump)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[float]] = {"ours": [], "strip_code": []}
    rendered: dict[str, list[str]] = {}
    for _ in range(arguments.repetitions):
        for name, function in (("ours", render), ("strip_code", strip_code)):
            taken, rendered[name] = timed(function, texts)
            seconds[name].append(taken)
    reference = statistics.median(seconds["strip_code"])
    for name in seconds:
        describe(name, statistics.median(seconds[name]), rendered[name], megabytes, reference)
    prose = [_MATHEMATICS.sub("", text) for text in rendered["ours"]]
    print(f"ours without its mathematics: left over {sum(left_over(prose).values()) / len(prose):.3f} per article")
    if arguments.wikiextractor:
        taken, found = extracted(arguments.wikiextractor, arguments.dump)
        describe("wikiextractor", taken, found, megabytes, reference)


if __name__ == "__main__":
    main()
