"""A corpus of four domains in miniature, made of words, with duplicates, junk and markup where a corpus has them."""

import bz2
import json
import pathlib
import random

_WORDS = [
    "river",
    "mountain",
    "engine",
    "letter",
    "garden",
    "window",
    "number",
    "history",
    "music",
    "water",
    "paper",
    "winter",
    "teacher",
    "village",
    "market",
    "road",
    "bridge",
    "summer",
    "island",
    "harbour",
    "forest",
    "kitchen",
    "station",
    "doctor",
    "picture",
    "evening",
    "morning",
    "question",
    "answer",
    "silver",
    "golden",
    "ancient",
    "modern",
    "quiet",
    "heavy",
    "gentle",
    "narrow",
    "distant",
    "common",
    "certain",
    "early",
    "perfect",
    "simple",
    "strange",
    "famous",
    "useful",
]
_SMALL = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "with",
    "for",
    "was",
    "it",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
    "an",
    "they",
    "which",
    "one",
]

CONFIG = '''
"""Four domains in miniature."""

from lm.corpus.config import default, source


def get_config():
    config = default()
    config.sources.wiki = source(reader="wikipedia", paths=("{root}/wiki.xml.bz2",))
    config.sources.books = source(reader="books", paths=("{root}/books",))
    config.sources.web = source(
        reader="jsonl", paths=("{root}/web",), filters=("gopher_quality",), languages=("en",), pii=True
    )
    config.sources.code = source(reader="code", paths=("{root}/code",), paragraphs=False)
    config.quality.good, config.quality.ordinary = ("wiki", "books"), ("web",)
    config.quality.buckets = 1024
    config.decontamination.paths = ("{root}/evaluation.jsonl",)
    config.tokenizer_vocab_size = 512
    config.validation_fraction = 0.1
    config.part_bytes = 20000
    config.shard_tokens = 10000
    return config
'''


def sentences(draw: random.Random, count: int) -> str:
    """Return sentences that a filter for English lets pass."""
    made = []
    for _ in range(count):
        words = [draw.choice(_SMALL if place % 2 else _WORDS) for place in range(draw.randint(8, 14))]
        made.append(" ".join(words).capitalize() + ".")
    return " ".join(made)


def write_corpus(root: pathlib.Path, scale: int = 1) -> pathlib.Path:
    """Write the raw files into a folder and return the config's path."""
    draw = random.Random(7)
    root.mkdir(parents=True, exist_ok=True)
    pages = [
        f"<page><title>Page {i}</title><ns>0</ns><id>{i}</id><revision><id>{i}</id>"
        f"<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>u</username><id>1</id></contributor>"
        f"<model>wikitext</model><format>text/x-wiki</format><text xml:space=\"preserve\">'''Page {i}''' is [[a|one]] "
        f"{{{{template}}}} {sentences(draw, 6)}\n\n== History ==\n{sentences(draw, 8)}</text><sha1>x</sha1></revision></page>"
        for i in range(1, 20 * scale + 1)
    ]
    pages.append(
        '<page><title>Old</title><ns>0</ns><id>9999</id><redirect title="Page 1" /><revision><id>1</id>'
        "<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>u</username><id>1</id></contributor>"
        "<model>wikitext</model><format>text/x-wiki</format>"
        '<text xml:space="preserve">#REDIRECT [[Page 1]]</text><sha1>x</sha1></revision></page>'
    )
    head = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en"><siteinfo>'
        "<sitename>Wiki</sitename><dbname>wiki</dbname><base>https://wiki.example/wiki/Main</base><generator>M</generator>"
        '<case>first-letter</case><namespaces><namespace key="0" case="first-letter" /></namespaces></siteinfo>'
    )
    (root / "wiki.xml.bz2").write_bytes(bz2.compress((head + "".join(pages) + "</mediawiki>").encode()))
    (root / "books").mkdir(exist_ok=True)
    for number in range(3):
        body = "\r\n\r\n".join(sentences(draw, 5) for _ in range(12 * scale))
        (root / "books" / f"{number}.txt").write_bytes(f"\ufeffTitle: Book {number}\r\n\r\n{body}\r\n".encode())
    (root / "web").mkdir(exist_ok=True)
    texts = [f"{sentences(draw, 9)}\n{sentences(draw, 3)}" for _ in range(60 * scale)]
    texts[5] = texts[4]  # a copy
    texts[7] = texts[6].replace("winter", "spring", 1)  # nearly
    texts[8] = f"Welcome to our village. {sentences(draw, 1)}"  # too short
    texts[9] += " Write to somebody@company.org now."
    for number in range(2):
        lines = [json.dumps({"text": text, "url": f"https://e.example/{i}"}) for i, text in enumerate(texts[number::2])]
        (root / "web" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    (root / "evaluation.jsonl").write_text(json.dumps({"question": texts[11]}) + "\n")
    (root / "code").mkdir(exist_ok=True)
    for number in range(8):
        body = "\n".join(
            f"def {draw.choice(_WORDS)}_{i}(x):\n    return x + {i}  # {sentences(draw, 1)}" for i in range(9)
        )
        (root / "code" / f"module_{number}.py").write_text(f'"""{sentences(draw, 1)}"""\n\n{body}\n')
    config = root / "corpus.py"
    config.write_text(CONFIG.replace("{root}", str(root)))
    return config
