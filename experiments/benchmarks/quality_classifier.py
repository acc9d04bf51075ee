"""How well the quality classifier tells Wikipedia and books from raw web text, beside fastText.

    LM_REAL_DATA=/path/to/data python -m experiments.benchmarks.quality_classifier [--peer-python PATH]

Good: the 98 articles of a Wikipedia dump and three books, cut into documents of 1,000 words. Ordinary: 1,000 pages of
C4 and the main text of the 39 HTML pages of three crawls. fastText (`--peer-python`: an environment with
fasttext-numpy2-wheel) has the same normalized passages to learn from and the same documents to score. Splits:

- random: a fifth of the documents held out;
- a book: one held out whole, trained on Wikipedia and the two other books; against web pages that are held out too;
- crawls: trained on everything against C4 alone, tested against the crawls, which no training page comes from;
- a kind: trained on books without Wikipedia, or the other way round, tested on what it has never seen anything like.

AUC on documents that were not trained on, on 2 shared cores:

| split | good | web | ours | fastText |
|---|---|---|---|---|
| random | 173 | 204 | 0.9995 ± 0.0011 | 0.9888 |
| Pride and Prejudice held out | 122 | 204 | 1.0000 | 0.9773 |
| Sherlock Holmes held out | 105 | 204 | 0.9980 ± 0.0031 | 0.9479 |
| War and Peace held out | 564 | 204 | 0.9953 ± 0.0021 | 0.9613 |
| crawls | 173 | 39 | 1.0000 | 0.9924 |
| Wikipedia, from books | 98 | 204 | 0.7822 ± 0.0303 | 0.6407 |
| books, from Wikipedia | 791 | 204 | 0.7476 ± 0.0170 | 0.7131 |

Training takes 5 to 7 s of CPU against fastText's 19 to 31 (25 epochs, learning rate 0.1, one thread), scoring 3.3 to 4.6
MB/s against 5.9 to 10.5. The last two rows say what a classifier is: it finds what is like its good texts, not what is
good. Who wants textbooks kept must show it some.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from lm.corpus.config import QualityConfig, SourceConfig
from lm.corpus.quality import auc, evaluate, passages, quality_words, train_classifier
from lm.corpus.readers.books import read as read_books
from lm.corpus.readers.wikipedia import read as read_wikipedia
from lm.corpus.readers.wikitext import Wikitext

BOOKS = ("pride_and_prejudice", "sherlock.1661", "war_and_peace.2600-0")
_PEER = """
import fasttext, json, sys, time
train, test = sys.argv[1:]
start = time.process_time()
model = fasttext.train_supervised(train, wordNgrams=2, bucket=2**18, epoch=25, lr=0.1, thread=1, seed=1, verbose=0)
trained = time.process_time()
scores = []
for line in open(test):
    scores.append(sum(p for p, label in model.f.predict(line, 2, 0.0, "strict") if label == "__label__good"))
print(json.dumps({"scores": scores, "train": trained - start, "score": time.process_time() - trained}))
"""


def wikipedia(folder: str) -> list[str]:
    """Return the articles of the dump as our reader renders them."""
    path = os.path.join(folder, "wiki", "enwiki-pages-articles1-shortened.xml.bz2")
    step, texts = Wikitext(), []
    for record in read_wikipedia(path, SourceConfig(reader="wikipedia"), print):
        if step(record) is None:
            texts.append(record.text)
    return texts


def book(folder: str, name: str) -> list[str]:
    """Return a book's documents of 1,000 words."""
    path = os.path.join(folder, "books", name + ".txt")
    words = [w for record in read_books(path, SourceConfig(reader="books"), print) for w in record.text.split()]
    return [" ".join(words[i : i + 1000]) for i in range(0, len(words), 1000)]


def crawls(folder: str) -> list[str]:
    """Return the main text of the HTML pages of the WARC files."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    texts = []
    for path in sorted(glob.glob(os.path.join(folder, "web", "*.warc.gz"))):
        with open(path, "rb") as file:
            for page in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True):
                if "html" in (page.http_content_type or ""):
                    content = page.reader.read()
                    texts.append(extract_plain_text(bytes_to_str(content, detect_encoding(content)), main_content=True))
    return [text for text in texts if text.strip()]


def peer_scores(python: str, train: list[list[str]], test: list[list[str]]) -> dict:
    """Return fastText's scores of the test documents (`scores`, good ones first) and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("train", "test")]
        with open(paths[0], "w", encoding="utf-8") as file:
            for label, texts in zip(("good", "ordinary"), train, strict=True):
                for passage in (p for text in texts for p in passages(quality_words(text))):
                    file.write(f"__label__{label} {' '.join(passage)}\n")
        with open(paths[1], "w", encoding="utf-8") as file:
            file.writelines(" ".join(quality_words(text)) + "\n" for texts in test for text in texts)
        done = subprocess.run([python, "-c", _PEER, *paths], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def compare(name: str, train: list[list[str]], test: list[list[str]], peer_python: str | None) -> None:
    """Print one split's AUC, ours and the peer's."""
    start = time.process_time()
    classifier = train_classifier(*train, QualityConfig(held_out=0.01))
    trained = time.process_time()
    figures = evaluate(classifier, *test)
    megabytes = sum(len(text.encode()) for texts in test for text in texts) / 1e6
    speed = megabytes / (time.process_time() - trained)
    line = (
        f"{name:30} {figures['auc']:.4f} ± {figures['auc_error']:.4f}  {len(test[0]):4} {len(test[1]):4}  "
        f"{trained - start:5.1f} s {speed:5.1f} MB/s"
    )
    if peer_python:
        peer = peer_scores(peer_python, train, test)
        area = auc(*np.split(np.array(peer["scores"]), [len(test[0])]))
        line += f"   fastText {area:.4f}  {peer['train']:5.1f} s {megabytes / peer['score']:5.1f} MB/s"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="Python of an environment with fastText")
    args = parser.parse_args()
    folder = os.environ.get("LM_REAL_DATA") or sys.exit("set $LM_REAL_DATA to the folder of real corpora")
    wiki, volumes = wikipedia(folder), {name: book(folder, name) for name in BOOKS}
    with open(os.path.join(folder, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        c4 = [json.loads(line)["text"] for line in file]
    pages, shelf = crawls(folder), [text for texts in volumes.values() for text in texts]
    print("split                             AUC               good  web   train   score")

    def parted(texts: list[str]) -> tuple[list[str], list[str]]:
        held = np.random.default_rng(0).random(len(texts)) < 0.2
        return [t for t, h in zip(texts, held, strict=True) if not h], [
            t for t, h in zip(texts, held, strict=True) if h
        ]

    (good, good_test), (web, web_test) = parted(wiki + shelf), parted(c4 + pages)
    compare("random", [good, web], [good_test, web_test], args.peer_python)
    for name in BOOKS:
        others = [text for other in BOOKS if other != name for text in volumes[other]]
        compare(name, [wiki + others, web], [volumes[name], web_test], args.peer_python)
    compare("crawls", [good, c4], [good_test, pages], args.peer_python)
    compare("Wikipedia, from books", [shelf, web], [wiki, web_test], args.peer_python)
    compare("books, from Wikipedia", [wiki, web], [shelf, web_test], args.peer_python)


if __name__ == "__main__":
    main()
