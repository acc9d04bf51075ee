"""Books read as books: no wrapping of the library's, paragraphs on one line, verse as it stands."""

import glob
import gzip
import os
import textwrap

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import books
from lm.corpus.readers.hard_wrapped import unwrap
from lm.errors import DamagedFileError

PROSE = """It was a bright cold morning in the month of April, and all of the clocks
in the town were striking at once, as they had done on every morning for
as long as anybody who lived there could remember, and a little longer--
or so the baker said, who had never been known to tell less than half-
truths about it."""
JOINED = PROSE.replace("--\n", "--").replace("half-\n", "half-").replace("\n", " ")
VERSE = "The clocks they strike,\n  The bells they ring,\nThe baker bakes,\n  And all birds sing."
LICENCE = "\n\nThis license grants you nothing at all of Project Gutenberg's.\n" * 20

NEW = f"""The Project Gutenberg EBook of Clocks, by A. Baker

This eBook is for the use of anyone anywhere.

Title: Clocks
       and Bells

Author: A. Baker

Release Date: June, 1998 [EBook #4711]

Character set encoding: UTF-8

*** START OF THIS PROJECT GUTENBERG EBOOK CLOCKS
AND BELLS ***




Produced by Somebody and the Online Distributed
Proofreading Team at https://www.example.org


{PROSE}

{VERSE}



End of the Project Gutenberg EBook of Clocks, by A. Baker

*** END OF THIS PROJECT GUTENBERG EBOOK CLOCKS ***
{LICENCE}"""
SMALL_PRINT = f"""**This is the Project Gutenberg Etext of Clocks, by A. Baker**

Please take a look at the important information in this header.

**Welcome To The World of Free Plain Vanilla Electronic Texts**

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here? You know: lawyers.
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


This etext was prepared by Somebody, somewhere.


{PROSE}

{VERSE}

End of The Project Gutenberg Etext of Clocks, by A. Baker
"""
PRINT_AT_END = NEW.replace("THIS PROJECT GUTENBERG EBOOK", "THE PROJECT GUTENBERG EBOOK,").replace(
    LICENCE, f"{LICENCE}\n***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\nlawyers\n*END THE SMALL PRINT!*\n{LICENCE}"
)  # fmt: skip


def read(tmp_path, data: bytes | str, skip=None):
    path = tmp_path / "book.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    records = list(books.read(str(path), SourceConfig(reader="books"), skip or (lambda *told: pytest.fail(str(told)))))
    return records[0] if records else None


@pytest.mark.parametrize("text", [NEW, SMALL_PRINT, PRINT_AT_END, NEW.replace("\n", "\r\n"), f"{PROSE}\n\n{VERSE}\n"])
def test_what_is_wrapped_around_a_book_is_removed_in_all_its_forms(tmp_path, text):
    assert read(tmp_path, text).text == f"{JOINED}\n\n{VERSE}"


def test_title_author_and_number_are_known(tmp_path):
    record = read(tmp_path, NEW)
    assert record.metadata == {"title": "Clocks and Bells", "author": "A. Baker", "gutenberg": 4711}
    assert record.url == "https://www.gutenberg.org/ebooks/4711" and record.id.endswith("book.txt")
    assert read(tmp_path, SMALL_PRINT).metadata == {"title": "Clocks", "author": "A. Baker"}
    assert read(tmp_path, PROSE).metadata == {} and read(tmp_path, PROSE).url is None


def test_a_book_that_speaks_of_the_library_is_not_cut(tmp_path):
    text = f"Chapter 1\n\n{PROSE}\n\nShe found it at Project Gutenberg.\n\nThe end of this.\n"
    assert read(tmp_path, text).text.endswith("The end of this.")


@pytest.mark.parametrize(
    "encoding, declared",
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("cp1252", ""),
        ("latin-1", "ISO-8859-1"),
        ("cp1251", "Windows-1251"),
    ],
)
def test_encodings_are_told_by_mark_content_or_header(tmp_path, encoding, declared):
    word = "Привет" if declared == "Windows-1251" else "café naïve" if encoding == "latin-1" else "café — “naïve”"
    text = f"Character set encoding: {declared}\n\n{word}"
    assert read(tmp_path, text.encode(encoding)).text.endswith(word)


def test_a_book_cut_short_is_damaged_and_not_a_shorter_book(tmp_path):
    whole = gzip.compress(os.urandom(50_000).hex().encode())
    assert len(read(tmp_path, whole).text) == 100_000
    with pytest.raises(DamagedFileError, match="truncated"):
        read(tmp_path, whole[:-20])


def test_what_is_no_text_is_skipped(tmp_path, monkeypatch):
    told = []
    assert read(tmp_path, b"\x7fELF\0\0", lambda *what: told.append(what)) is None
    assert read(tmp_path, "\n\n", lambda *what: told.append(what)) is None
    monkeypatch.setattr(books, "MAX_BYTES", 10)
    assert read(tmp_path, "a" * 11, lambda *what: told.append(what)) is None
    assert [reason.split(":")[0] for _, reason in told] == ["it is no text", "it holds no text", "larger than 10 bytes"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a _word_ and _two\nwords_ in snake_case_name", "a word and two words in snake_case_name"),
        ("a =bold= word, b = c = d", "a bold word, b = c = d"),
        ("one\n\n[Illustration: A clock\n[of brass]]\n\ntwo [Illustration] three", "one\n\ntwo  three"),
        ("[Transcriber's Note: spelling\nis kept.]\n\none", "one"),
        ("TRANSCRIBER'S NOTE\n\nSpelling is kept.\n\none", "one"),
        ("one[Pg 12] two {13} [12] [Footnote 1: x]", "one two [12] [Footnote 1: x]"),
        ("[Illustration: never closed\none", "one"),
    ],
)
def test_marks_of_the_transcription_are_taken_out(tmp_path, text, expected):
    assert read(tmp_path, text).text == expected


@pytest.mark.parametrize(
    "block",
    [
        VERSE,
        "I. A Clock\n II. A Bell\nIII. A Baker",
        "Roses are red and smell of the summer night,\nViolets are blue and they give me delight,\nSugar is sweet",
        "     An indented letter, which is as wide as\n     it likes, and stays so.",
        "12 High Street\nLondon",
    ],
)
def test_lines_that_were_meant_stay(block):
    assert unwrap(f"{PROSE}\n\n{block}\n\n{PROSE}") == f"{JOINED}\n\n{textwrap.dedent(block)}\n\n{JOINED}"


def test_paragraphs_told_apart_by_indents_and_signatures_to_the_right_are_seen():
    indented = "\n".join("  " + PROSE for _ in range(3))
    assert unwrap(indented) == "\n\n".join([JOINED] * 3)
    assert unwrap(f"{PROSE}\n{' ' * 40}A. BAKER") == f"{JOINED}\n\nA. BAKER"


def test_lines_wrapped_by_bytes_are_joined():
    """Some books count a curly quote as several characters."""
    text = "“Don’t you want to? Well, then, come here,” said she, and\nwent further in among the plants."
    assert "\n" not in unwrap(f"{PROSE}\n\n{text}").split("\n\n")[1]


def test_breaks_between_scenes_are_one_kind():
    assert unwrap("a\n\n       *       *       *       *\n\nb\n\n-----\n\nc") == "a\n\n* * *\n\nb\n\n* * *\n\nc"


@pytest.mark.real_data
def test_real_books_have_no_trace_of_the_library_and_few_broken_paragraphs(real_data):
    for path in glob.glob(os.path.join(real_data, "books", "*.txt")):
        [record] = books.read(path, SourceConfig(reader="books"), lambda *told: pytest.fail(str(told)))
        paragraphs = record.text.split("\n\n")
        assert "gutenberg" not in record.text.lower() and {"title", "author"} <= set(record.metadata)
        assert sum("\n" in paragraph for paragraph in paragraphs) < 0.01 * len(paragraphs)
        assert len(record.text) > 0.9 * os.path.getsize(path)
