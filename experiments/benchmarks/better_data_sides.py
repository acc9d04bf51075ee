"""The texts that `experiments.benchmarks.better_data` compares: what is held out, what is raw, what the pipeline makes.

A domain's documents are set apart before anything else is done: by a hash of their names, one in ten; of the books, the
first by name. Both halves keep the files' formats, so that the pipeline reads them as it reads all files.
"""

import bz2
import glob
import hashlib
import io
import json
import os
import re
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator

import numpy as np

DOMAINS = ("wiki", "books", "web", "code")
HELD_OUT = 10  # one document in so many
SHINGLE_WORDS = 5
NEAR = 0.5  # share of shingles in common at which a training document is near to a held-out one:
LONG = 200  # of the shorter one's, if both have so many; else of both together, or a license's text would be enough


def is_held_out(name: str) -> bool:
    """Return whether a document is set apart, the same for the same name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0


def set_apart(root: str, train: str, held: str) -> None:
    """Write the raw files of `root` into two folders of the same layout, the documents held out into `held`."""
    for folder in (train, held):
        for part in DOMAINS:
            os.makedirs(os.path.join(folder, part))
        os.symlink(os.path.abspath(os.path.join(root, "eval")), os.path.join(folder, "eval"))
    for path in sorted(glob.glob(os.path.join(root, "wiki", "*.xml.bz2"))):
        _split_dump(path, *(os.path.join(folder, "wiki", os.path.basename(path)) for folder in (train, held)))
    books = sorted(glob.glob(os.path.join(root, "books", "*.txt")))
    for number, path in enumerate(books):
        target = os.path.join(held if number == 0 else train, "books", os.path.basename(path))
        os.symlink(os.path.abspath(path), target)
    for path in glob.glob(os.path.join(root, "web", "c4-1000.jsonl")):
        _split_lines(path, *(os.path.join(folder, "web", os.path.basename(path)) for folder in (train, held)))
    for path in sorted(glob.glob(os.path.join(root, "web", "*.warc.gz"))):
        _split_warc(path, *(os.path.join(folder, "web", os.path.basename(path)) for folder in (train, held)))
    for path in sorted(glob.glob(os.path.join(root, "code", "*.tar.gz"))):
        _split_archive(path, *(os.path.join(folder, "code", os.path.basename(path)) for folder in (train, held)))


def _split_dump(path: str, train: str, held: str) -> None:
    with bz2.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    head, *pages = text.rpartition("</mediawiki>")[0].split("<page>")
    for target, wanted in ((train, False), (held, True)):
        chosen = [
            "<page>" + page for page in pages if is_held_out(re.search("<title>(.*?)</title>", page)[1]) == wanted
        ]
        with bz2.open(target, "wt", encoding="utf-8") as file:
            file.write(head + "".join(chosen) + "</mediawiki>\n")


def _split_lines(path: str, train: str, held: str) -> None:
    with open(path, "rb") as file, open(train, "wb") as one, open(held, "wb") as other:
        for number, line in enumerate(file):
            (other if is_held_out(f"{os.path.basename(path)}:{number}") else one).write(line)


def _split_warc(path: str, train: str, held: str) -> None:
    with open(path, "rb") as file, open(train, "wb") as one, open(held, "wb") as other:
        left = file.read()
        while left:  # a gzip member for each record
            member = zlib.decompressobj(wbits=31)
            address = re.search(rb"(?i)^WARC-Target-URI: *(.*?)\r?$", member.decompress(left), re.MULTILINE)
            size = len(left) - len(member.unused_data)
            (other if address and is_held_out(address[1].decode()) else one).write(left[:size])
            left = member.unused_data
    for target in (train, held):
        if not os.path.getsize(target):
            os.remove(target)


def _split_archive(path: str, train: str, held: str) -> None:
    with tarfile.open(path) as archive, tarfile.open(train, "w:gz") as one, tarfile.open(held, "w:gz") as other:
        for member in archive:
            if not member.isfile():
                continue
            content = archive.extractfile(member).read()
            is_license = "license" in member.name.lower()  # of all files, on both sides
            for target, wanted in ((one, False), (other, True)):
                if is_license or is_held_out(member.name) == wanted:
                    target.addfile(member, io.BytesIO(content))


def raw_documents(folder: str, domain: str) -> Iterator[str]:
    """Yield a domain's documents as they come: wikitext, whole books, C4 and HTML, every file of the archives."""
    if domain == "wiki":
        for path in sorted(glob.glob(os.path.join(folder, "wiki", "*.xml.bz2"))):
            with bz2.open(path) as file:
                for _, element in ElementTree.iterparse(file):
                    if element.tag.rpartition("}")[2] == "text":
                        yield element.text or ""
    elif domain == "books":
        for path in sorted(glob.glob(os.path.join(folder, "books", "*.txt"))):
            with open(path, encoding="utf-8", errors="replace", newline="") as file:
                yield file.read()
    elif domain == "web":
        for path in glob.glob(os.path.join(folder, "web", "*.jsonl")):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)["text"]
        yield from _pages(folder)
    else:
        for path in sorted(glob.glob(os.path.join(folder, "code", "*.tar.gz"))):
            with tarfile.open(path) as archive:
                for member in archive:
                    yield archive.extractfile(member).read().decode("utf-8", "replace")


def _pages(folder: str) -> Iterator[str]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    for path in sorted(glob.glob(os.path.join(folder, "web", "*.warc.gz"))):
        with open(path, "rb") as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True):
                content = record.reader.read()
                if "html" in (record.http_content_type or ""):
                    yield bytes_to_str(content, detect_encoding(content))


def corpus_documents(folder: str) -> dict[str, list[str]]:
    """Return the documents of a corpus that `lm data build` made, by domain."""
    from lm.data.dataset import open_data

    data, texts = open_data(folder), {}
    for split in data.splits:
        for shard, domain in zip(data.shards(split), data.domains(split), strict=True):
            own = texts.setdefault(domain, [])
            for start, end in zip(shard.starts, shard.ends, strict=True):
                own.append(data.tokenizer.decode(shard.tokens[int(start) + 1 : int(end)]))
    return texts


class HeldOut:
    """Finds documents near to held-out ones."""

    def __init__(self, texts: list[str]):
        from lm.corpus.dedup.shingles import shingle_set

        sets = [shingle_set(text, SHINGLE_WORDS) for text in texts]
        self._sizes = np.array([len(shingles) for shingles in sets])
        shingles, owners = np.concatenate(sets), np.repeat(np.arange(len(sets)), self._sizes)
        order = np.argsort(shingles, kind="stable")
        self._shingles, self._owners = shingles[order], owners[order]

    def is_near(self, text: str) -> bool:
        """Return whether a text is near to one of those held out."""
        from lm.corpus.dedup.shingles import shingle_set

        own = shingle_set(text, SHINGLE_WORDS)
        if not len(own):
            return False
        first, last = np.searchsorted(self._shingles, own, "left"), np.searchsorted(self._shingles, own, "right")
        hits = [self._owners[a:b] for a, b in zip(first, last, strict=True) if b > a]
        if not hits:
            return False
        shared = np.bincount(np.concatenate(hits), minlength=len(self._sizes))
        shorter, union = np.minimum(self._sizes, len(own)), self._sizes + len(own) - shared
        return bool((shared >= NEAR * np.where(shorter >= LONG, shorter, union)).any())
