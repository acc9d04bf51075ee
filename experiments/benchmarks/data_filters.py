"""The published filters beside datatrove's: decisions, words and speed on the same documents in one run.

    LM_REAL_DATA=... python -m experiments.benchmarks.data_filters --peer-python path/to/python-with-datatrove

Documents: c4-1000 (`web/c4-1000.jsonl`), and as a harder test of the word rules pieces of 20,000 characters of books
(Project Gutenberg), wikitext (a Wikipedia dump as it comes, markup included) and code (Flax's sources). Each side is
a process of its own and they take turns; CPU seconds, medians over the rounds, on c4-1000. datatrove's filters are
called as in its `examples/fineweb.py`: C4 without the rule about final punctuation, no bad words. A start is the
import of the filters and of what splits words (spaCy's blank English for datatrove).

Prints Markdown, then one JSON object; exit code 1 where fewer than 99 % of the decisions agree on c4-1000.

Measured on a shared machine of 2 CPU cores (load 8 to 11), Python 3.11, datatrove 0.10.1 with spaCy 3.8, 3 rounds.
MB/s of ours, of datatrove, the ratio, and the ratio with both starts: gopher_repetition 3.69, 0.32, 12.3, 10.7;
gopher_quality 5.86, 0.40, 14.5, 11.9; c4 10.7, 0.28, 36.5, 23.4; fineweb_quality 8.24, 0.37, 22.5, 14.9; all four in a
chain 2.77, 0.11, 19.6, 17.1. On c4-1000 933, 830, 828, 999 and 717 documents pass, on both sides the same ones, and the
rest fail by the same rules; so do all pieces of books, wikitext and code, and the chain leaves the same texts. Of the
words 99.9995 % are spaCy's (c4-1000), 100 % (books), 99.992 % (wikitext) and 99.998 % (code). What differs: a special
case that spaCy's matcher begins across a space hides one after it (`'' ''`, `) :)`); scripts that spaCy has lists of.
"""

import argparse
import bz2
import collections
import glob
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile

SIDES = os.path.join(os.path.dirname(__file__), "data_filters_sides.py")
PIECE, PIECES = 20_000, 100  # characters; of a set
RULES = {  # datatrove's names for ours
    "gopher_short_doc": "short",
    "gopher_long_doc": "long",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullets",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "alphabetic",
    "gopher_enough_stop_words": "stop_words",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    "too_few_sentences": "few_sentences",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_characters",
    "list_ratio": "newlines",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}


def documents(root: str) -> dict[str, list[str]]:
    """Return the sets of documents in the folder of real corpora; the first is the one that is timed."""
    with open(os.path.join(root, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        sets = {"timed": [json.loads(line)["text"] for line in file]}
    books = []
    for path in sorted(glob.glob(os.path.join(root, "books", "*.txt"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            books += pieces(file.read())
    sets["books"] = books[:: max(1, len(books) // PIECES)]
    with bz2.open(
        os.path.join(root, "wiki", "enwiki-pages-articles1-shortened.xml.bz2"), "rt", encoding="utf-8"
    ) as dump:
        sets["wikitext"] = pieces(dump.read(PIECE * PIECES))
    with tarfile.open(os.path.join(root, "code", "flax-py.tar.gz")) as archive:
        files = [archive.extractfile(member).read().decode() for member in archive if member.isfile()]
    sets["code"] = [text for text in files if text.strip()]
    return sets


def pieces(text: str) -> list[str]:
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def spans(words: list[str]) -> list[tuple[int, int]]:
    """Return each word's place in the text without white space."""
    ends = 0
    return [(ends := ends + len(word), len(word)) for word in words]


def compare(mine: dict, peer: dict) -> dict:
    """Return how far two sides agree about one set, with examples of words that they split differently."""
    decisions = {}
    for name, rules in mine["rules"].items():
        theirs = [rule and "/".join(RULES.get(part, part) for part in rule.split("/")) for rule in peer["rules"][name]]
        pairs = list(zip(rules, theirs, strict=True))
        decisions[name] = {
            "documents": len(pairs),
            "passed": sum(a is None for a, _ in pairs),
            "peer_passed": sum(b is None for _, b in pairs),
            "same": sum((a is None) == (b is None) for a, b in pairs),
            "same_rule": sum(a == b for a, b in pairs),
            "different": [[at, a, b] for at, (a, b) in enumerate(pairs) if a != b],
        }
    total = same = 0
    examples: collections.Counter[str] = collections.Counter()
    for words, theirs in zip(mine["words"], peer["words"], strict=True):
        ours = set(spans(words))
        places = spans(theirs)
        total += len(theirs)
        same += sum(place in ours for place in places)
        if words != theirs:
            examples.update(word for word, place in zip(theirs, places, strict=True) if place not in ours)
    words = {"peer": total, "ours": sum(map(len, mine["words"])), "same": same, "examples": examples.most_common(8)}
    texts = sum(a == b for a, b in zip(mine["left"], peer["left"], strict=True))
    return {"decisions": decisions, "words": words, "same_texts": texts}


def run(python: str, side: str, folder: str, sets: dict[str, list[str]]) -> dict:
    """Return a side's result."""
    asked, out = os.path.join(folder, "documents.json"), os.path.join(folder, f"{side}.json")
    with open(asked, "w") as file:
        json.dump(sets, file)
    environment = os.environ | {"PYTHONPATH": os.getcwd() if side == "ours" else ""}
    command = [python, SIDES, side, asked, out]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    with open(out) as file:
        return json.load(file)


def speeds(rounds: list[tuple[dict, dict]], megabytes: float) -> dict[str, dict[str, float]]:
    """Return MB/s of both sides by filter, and the ratios without and with the start, medians over the rounds."""
    out = {}
    for name in rounds[0][0]["seconds"]:
        pairs = [(mine["seconds"][name], peer["seconds"][name]) for mine, peer in rounds]
        started = [(mine["start_seconds"], peer["start_seconds"]) for mine, peer in rounds]
        with_start = [(b + t) / (a + s) for (a, b), (s, t) in zip(pairs, started, strict=True)]
        out[name] = {
            "ours": statistics.median(megabytes / a for a, _ in pairs),
            "peer": statistics.median(megabytes / b for _, b in pairs),
            "ratio": statistics.median(b / a for a, b in pairs),
            "ratio_with_start": statistics.median(with_start),
        }
    return out


def show(results: dict[str, dict], speed: dict[str, dict[str, float]]) -> None:
    print("| filter | ours MB/s | datatrove MB/s | ratio | with the start |\n|---|---:|---:|---:|---:|")
    for name, row in speed.items():
        print(
            f"| {name} | {row['ours']:.2f} | {row['peer']:.2f} | {row['ratio']:.1f} | {row['ratio_with_start']:.1f} |"
        )
    print("\n| documents | filter | passed | datatrove | same decision | same rule |\n|---|---|---:|---:|---:|---:|")
    for title, result in results.items():
        for name, row in result["decisions"].items():
            total = row["documents"]
            print(
                f"| {title} | {name} | {row['passed']} of {total} | {row['peer_passed']} | {row['same']} | {row['same_rule']} |"
            )
    print("\n| documents | words | of spaCy | the same | split differently |\n|---|---:|---:|---:|---|")
    for title, result in results.items():
        words = result["words"]
        examples = ", ".join(f"`{word}` {count}" for word, count in words["examples"])
        print(f"| {title} | {words['ours']} | {words['peer']} | {words['same'] / words['peer']:.4%} | {examples} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="of an environment with datatrove and spaCy")
    parser.add_argument("--data", default=os.environ.get("LM_REAL_DATA"), help="folder of real corpora")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data: name the folder of real corpora, or set $LM_REAL_DATA")
    sets = documents(options.data)
    timed = {"timed": sets["timed"]}
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            (run(sys.executable, "ours", folder, asked), run(options.peer_python, "datatrove", folder, asked))
            for asked in [sets, *[timed] * (options.rounds - 1)]
        ]
    mine, peer = rounds[0]
    results = {
        "c4-1000" if title == "timed" else title: compare(mine["sets"][title], peer["sets"][title]) for title in sets
    }
    speed = speeds(rounds, sum(len(text.encode()) for text in sets["timed"]) / 1e6)
    show(results, speed)
    print(json.dumps({"speed": speed, "results": results}, ensure_ascii=False))
    rows = results["c4-1000"]["decisions"].values()
    return int(any(row["same"] < 0.99 * row["documents"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
