"""Which documents are for training, validation and test."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

from lm.data.sources import Document
from lm.tokenizer.tokenizer import valid_unicode

SPLITS = ("train", "validation", "test")


def split_documents(
    documents: Callable[[], Iterator[Document]], validation_fraction: float, test_fraction: float
) -> Iterator[tuple[str, Document]]:
    """Yield (split, document) for every document that is not empty.

    By the hash of its text, so that copies of a document fall on the same side, and a document stays
    where it is when others come or go. A corpus of one document is cut by position instead: the test
    split is its end, the validation split comes before that. Splits never overlap.

    Args:
      documents: gives the corpus from its beginning.
      validation_fraction: of documents (of bytes, for one document).
      test_fraction: the same.
    """
    corpus = _with_text(documents())
    first, second = next(corpus, None), next(corpus, None)
    if first is None:
        return
    if second is None:
        yield from cut_by_position(first, validation_fraction, test_fraction)
        return
    for document in itertools.chain((first, second), corpus):
        yield split_of(document.text, validation_fraction, test_fraction), document


def split_each(
    documents: Iterable[Document], validation_fraction: float, test_fraction: float
) -> Iterator[tuple[str, Document]]:
    """As `split_documents`, of a part of a corpus: a document goes by its hash also where it is the only one."""
    for document in _with_text(documents):
        yield split_of(document.text, validation_fraction, test_fraction), document


def _with_text(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if document.text:
            text = valid_unicode(document.text)
            yield document if text is document.text else dataclasses.replace(document, text=text)


def split_of(text: str, validation_fraction: float, test_fraction: float) -> str:
    """Return the split of a document among many.

    A keyed hash maps the text to a point of [0, 1): the test split is the interval's beginning and the
    validation split its end, so that changing one fraction moves no document between the other two.
    """
    digest = hashlib.sha256(b"lm split 1" + hashlib.sha256(text.encode()).digest()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < test_fraction:
        return "test"
    return "validation" if point >= 1 - validation_fraction else "train"


def cut_by_position(
    document: Document, validation_fraction: float, test_fraction: float
) -> Iterator[tuple[str, Document]]:
    """Yield the three parts of one document, in order, cut between UTF-8 characters; empty ones are left out."""
    content = document.text.encode()
    shares = (1 - validation_fraction - test_fraction, 1 - test_fraction, 1)
    start = 0
    for split, share in zip(SPLITS, shares, strict=True):
        stop = int(len(content) * share)
        while stop < len(content) and content[stop] & 0xC0 == 0x80:  # inside a character
            stop -= 1
        if stop > start:
            text = content[start:stop].decode()
            yield split, dataclasses.replace(document, text=text, start=document.start + start)
        start = max(start, stop)
