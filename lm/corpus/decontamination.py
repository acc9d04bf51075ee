"""Decontamination: documents that hold pieces of evaluation sets are dropped.

A piece is a word n-gram of lower-cased text without punctuation, 13 words by default: the definition of GPT-3 (Brown et
al. 2020, arXiv:2005.14165, appendix C) and lm-evaluation-harness. A text of an evaluation set with fewer words is looked
for as a whole, if it has at least 8 (GPT-3's least n); what is shorter cannot be told from chance and is only counted.

The n-grams of all sets are hashed to 64 bits and sorted: 8 bytes each, and 2 for the set that it is from. The 22 CORE
tasks have some 5 million words: 60 MB. MMLU, GSM8K and a hundred more sets of 10 MB of text each: 170 million n-grams,
2.0 GB with the filter of 2 bytes each, in each worker; twice that while it is built. A wrong match is possible: with m n-grams in the index and
d in the corpus m·d / 2^64 of them are expected, for 10^7 and 10^12 one in two in the whole corpus.
"""

import collections
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm import storage
from lm.corpus.hashed_words import hash_ngrams, hash_words
from lm.corpus.readers.opening import TooLong, lines, open_input
from lm.corpus.record import Record, Rejection
from lm.errors import DamagedFileError, LmError

SHORTEST = 8  # words, of a text that is looked for as a whole
SUFFIX = ".ngrams"
_LINE_LIMIT = 1 << 26  # bytes
_BEFORE = 63  # words of the lines before, at most; a longer n-gram is not found across a line end
_FILTER_BITS = 16  # per n-gram, of the table that tells most lookups that they need not be made
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")


def normalized_words(text: str) -> list[str]:
    """Return a text's words: lower-cased, punctuation removed."""
    return _PUNCTUATION.sub("", text.lower()).split()


def set_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each evaluation set: its file's without endings, after as many folders as tell them apart."""
    parts = [[part for part in re.split(r"[/\\]", path) if part] for path in paths]
    for own in parts:
        own[-1] = own[-1].split(".")[0] or own[-1]
    depth = 1
    while len({"/".join(own[-depth:]) for own in parts}) < len(set(paths)) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(own[-depth:]) for own in parts]


def evaluation_texts(path: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words of each text of an evaluation set, compressed or not, as (words just before it, its words).

    A line that is a JSON object or list has all texts inside it, at any depth, with nothing before them; any other line
    is a text, and the last words of the line before it let n-grams be found across the line ends of a paragraph.

    Raises:
      UsageError, LmError, DamagedFileError: as `open_input`; or a line that is too long or not UTF-8.
    """
    before: list[str] = []
    with open_input(path) as stream:
        for number, line in enumerate(lines(stream, _LINE_LIMIT), 1):
            if isinstance(line, TooLong):
                raise LmError(f'"{path}", line {number}: {line.bytes:,} bytes are too long for an evaluation set.')
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise LmError(f'"{path}", line {number} is not UTF-8 text: {error}.') from error
            if text.lstrip()[:1] in ("{", "["):
                try:
                    for part in _texts_in(json.loads(text)):
                        yield [], normalized_words(part)
                    continue
                except ValueError:  # a text that begins with a bracket
                    pass
            words = normalized_words(text)
            yield before, words
            before = (before + words)[-_BEFORE:] if words else []


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


def build_index(arguments: Mapping[str, Any], out: str, report) -> dict[str, Any]:
    """The task (`lm.corpus.task.Function`) that writes the n-grams of evaluation sets to `out + SUFFIX`.

    Arguments: `paths`, files of text or JSON lines; `words`, n. An n-gram of several sets counts for the first.

    Returns:
      `{"ngrams": in all, "lengths": [words], "sets": {name: {"path", "texts", "ngrams", "too_short"}}}`; `too_short`:
      texts that are not looked for as a whole.
    """
    paths, n = list(arguments["paths"]), int(arguments["words"])
    names, sets, lengths = set_names(paths), {}, set()
    hashes, owners, done = np.zeros(0, np.uint64), np.zeros(0, np.uint16), 0
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        found, texts, too_short = [hashes[:0]], 0, 0
        for before, words in evaluation_texts(path):
            if not words:
                continue
            texts += 1
            done += sum(map(len, words)) + len(words)
            if texts % 1000 == 0:
                report(done)
            spans = [(words, min(n, len(words)))]
            if before:
                spans.append((before[-(n - 1) :] + words if n > 1 else words, n))
            too_short += len(words) < min(SHORTEST, n)
            for span, length in spans:
                if length >= min(SHORTEST, n) and len(span) >= length:
                    found += hash_ngrams(hash_words(span), [length])
                    lengths.add(length)
        own = np.setdiff1d(np.concatenate(found), hashes)  # sorted, each once
        sets[name] = {"path": path, "texts": texts, "ngrams": len(own), "too_short": too_short}
        hashes, owners = np.concatenate([hashes, own]), np.concatenate([owners, np.full(len(own), number, np.uint16)])
        order = np.argsort(hashes, kind="stable")
        hashes, owners = hashes[order], owners[order]
    index = _Index(hashes, owners, sorted(lengths), names)
    storage.write_atomic(out + SUFFIX, index.encode())
    return {"ngrams": len(hashes), "lengths": list(index.lengths), "sets": sets}


class _Index:
    """N-grams of evaluation sets.

    Attributes:
      hashes: sorted, uint64 `[m]`.
      owners: the number of the set that each is from, uint16 `[m]`.
      lengths: n of the n-grams that there are.
      names: of the sets.
    """

    def __init__(self, hashes: np.ndarray, owners: np.ndarray, lengths: Sequence[int], names: Sequence[str]):
        self.hashes, self.owners, self.lengths, self.names = hashes, owners, tuple(lengths), list(names)
        # Nearly all of a corpus is not in the index: a bit per hash says so with one read instead of log2(m).
        self._mask = np.uint64((1 << max(6, (_FILTER_BITS * len(hashes)).bit_length())) - 1)
        self._filter = np.zeros((int(self._mask) + 1) // 8, np.uint8)
        for start in range(0, len(hashes), 1 << 20):
            byte, bit = self._filter_place(hashes[start : start + (1 << 20)])
            np.bitwise_or.at(self._filter, byte, bit)

    def _filter_place(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = hashes & self._mask
        return (place >> np.uint64(3)).astype(np.int64), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)

    def matches(self, words: np.ndarray) -> np.ndarray:
        """Return the places in the index of a document's n-grams of all lengths, int64 `[matches]`."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *hash_ngrams(words, self.lengths)])
        byte, bit = self._filter_place(hashes)
        hashes = hashes[self._filter[byte] & bit != 0]
        place = np.searchsorted(self.hashes, hashes)
        inside = place < len(self.hashes)
        place, hashes = place[inside], hashes[inside]
        return place[self.hashes[place] == hashes]

    def encode(self) -> bytes:
        """Return the file: a line of JSON, then the hashes and the owners, little-endian."""
        about = {"lengths": self.lengths, "names": self.names, "ngrams": len(self.hashes)}
        head = json.dumps(about, sort_keys=True).encode() + b"\n"
        return head + self.hashes.astype("<u8").tobytes() + self.owners.astype("<u2").tobytes()


@functools.lru_cache(maxsize=2)
def _read_index(path: str) -> _Index:
    content = io.BytesIO(storage.read_bytes(path))
    try:
        about = json.loads(content.readline())
        count = about["ngrams"]
        rest = content.read()
        if len(rest) != 10 * count:
            raise ValueError(f"{len(rest)} bytes, expected {10 * count}")
        hashes, owners = np.frombuffer(rest, "<u8", count), np.frombuffer(rest, "<u2", count, 8 * count)
        return _Index(hashes, owners, about["lengths"], about["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}. Remove it, and run the same command.') from error


class Decontamination:
    """The document step that drops documents with pieces of evaluation sets.

    Rejection `decontamination/SET`, the set that the most n-grams are from; value: the share of the document's n-grams
    (of any set). `counts`: documents by set.

    Args:
      path: what the task `build_index` wrote, `out + SUFFIX`; read once per process.
      max_overlap: share of a document's n-grams that may be in evaluation sets; 0: none.

    Raises:
      UsageError: there is no such file, or xxhash is not installed.
      DamagedFileError: it is damaged.
    """

    name = "decontamination"

    def __init__(self, path: str, max_overlap: float = 0.0):
        self._index, self._max_overlap = _read_index(path), max_overlap
        self.counts: collections.Counter = collections.Counter()

    def __call__(self, record: Record) -> Rejection | None:
        words = hash_words(normalized_words(record.text))
        found = self._index.matches(words)
        if not len(found):
            return None
        share = min(1.0, len(found) / max(1, len(words) - max(self._index.lengths) + 1))
        if share <= self._max_overlap:
            return None
        name = self._index.names[np.bincount(self._index.owners[found]).argmax()]
        self.counts[name] += 1
        return Rejection(f"decontamination/{name}", round(share, 6))
