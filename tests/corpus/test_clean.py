"""Cleaning: what is broken is repaired, what is text stays as it is."""

import pytest

from lm.corpus.clean import Clean
from lm.corpus.record import Record


def cleaned(text: str, kind: str = "prose", **options) -> str:
    record = Record("1", text)
    assert Clean(kind, **options)(record) is None
    return record.text


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("fÃ¼r Geomorphologie", "für Geomorphologie"),  # UTF-8 read as Windows-1252
        ("canâ€™t be solved", "can’t be solved"),
        ("there \x96 every", "there – every"),  # Windows-1252 read as Latin-1
        ("Ð\x9fÑ\x80Ð¸Ð²ÐµÑ\x82", "Привет"),  # UTF-8 read as Latin-1
        ("itвЂ™s here", "it’s here"),  # read as Windows-1251
    ],
)
def test_mojibake_is_repaired_and_only_in_its_line(broken, whole):
    other = "Œuvres complètes, 12 €, “naïve” – déjà vu; Ελλάδα, Київ, 東京"
    assert cleaned(f"{other}\n{broken}\n{other}") == f"{other}\n{whole}\n{other}"
    assert cleaned(f'x = "{broken}"', "code") == f'x = "{whole}"'


def test_ftfy_is_called_only_where_something_looks_broken():
    step = Clean()
    step(Record("1", "“Curly” quotes – naïve café, Straße, Łódź, Привет, 東京 ½ °C …"))
    assert "documents given to ftfy" not in step.counts
    step(Record("2", "fÃ¼r\nfür"))
    assert step.counts["documents given to ftfy"] == step.counts["lines repaired"] == 1


def test_characters_that_no_reader_sees_go_and_letters_are_composed():
    assert cleaned("\ufeffa\u200bb\x07c\xadd\ue000e\ufffdf\u202eg") == "abcdefg"
    assert cleaned("cafe\u0301") == "café"
    assert cleaned("a\xa0b\u2009c\u3000d") == "a b c d"
    assert cleaned("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"  # spelled with zero-width joiners


def test_line_ends_trailing_spaces_and_blank_lines():
    assert cleaned("a\r\nb\rc  \n\n \n\n\nd\x0ce\u2028f\n\n") == "a\nb\nc\n\nd\ne\nf"
    assert cleaned("é\r\nb\x0cc") == "é\nb\nc"


def test_separator_lines_stay_only_between_text():
    assert cleaned("-----\n\nOne.\n\n* * *\n\nTwo.\n=====\n\n-----\nThree.\n*****\n") == (
        "One.\n\n* * *\n\nTwo.\n=====\n\nThree."
    )
    assert cleaned("a {\n  b {\n  }\n}\nend") == "a {\n  b {\n  }\n}\nend"
    assert cleaned("| a | b |\n|---|---|\n| 1 | 2 |") == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_code_keeps_its_layout():
    source = "def f():  \n\treturn '\u00a0\u200b\ufffd e\u0301'\n\n\n\n# -----\n# =====\n-----\n"
    assert cleaned(source, "code") == source
    assert cleaned("\ufeffa\r\nb\x00\x1b[0m\rc", "code") == "a\nb[0m\nc"


PROSE = "This is a line of ordinary prose that says something, and it goes on for a while.\n" * 20


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("CLICK HERE TO BUY", None),
        ("2014", None),
        ("3 likes", None),
        ("1.2K Followers", None),
        ("Home", None),
        ("2 items in cart", "2"),
        ("The story so far Read more...", "The story so far"),
        ("Sign-in or register", " or register"),
        ("The committee met in Geneva on 3 May.", "The committee met in Geneva on 3 May."),
        ("She said that 3 likes of hers were cats, dogs and sign-in sheets; read more... of it now.", ...),
    ],
)
def test_refinedwebs_line_rules_are_for_the_web(line, left):
    left = line if left is ... else left
    assert (
        cleaned(PROSE + line + "\n" + PROSE, "web")
        == (PROSE + (left + "\n" if left is not None else "") + PROSE).strip()
    )
    assert line in cleaned(PROSE + line + "\n" + PROSE)


def test_a_page_of_mostly_undesirable_lines_is_rejected():
    record = Record("1", "Home\nAbout\nContact\n" + PROSE[:90])
    rejection = Clean("web")(record)
    assert rejection.rule == "clean/lines"
    assert rejection.value == pytest.approx(3 / (len(PROSE[:90].split()) + 3), abs=1e-4)
    assert Clean("web", max_removed=None)(Record("1", "Home\n" + PROSE[:80])) is None


def test_what_is_empty_after_cleaning_is_rejected():
    assert Clean()(Record("1", "\ufeff \n-----\n")).rule == "clean/empty"
    assert Clean("code")(Record("1", "\n \n")).rule == "clean/empty"


def test_counts_say_what_was_done():
    step = Clean()
    step(Record("1", "a\r\nb\x07"))
    assert dict(step.counts) == {"line ends": 1, "characters removed": 1, "documents changed": 1}


def test_long_runs_of_one_character_are_cleaned_too():
    for text in (" " * 500_000 + "x", "x" + " \t" * 250_000, "-" * 500_000 + "x", "\xa0" * 500_000 + "x", "Ã" * 50_000):
        record = Record("1", text)  # where a pattern takes quadratic time, this does not end
        Clean("web", max_removed=None)(record)
        assert len(record.text) < len(text) and "  " not in record.text
