"""Pieces of a page: what comes from data is never read as HTML."""

import pytest

from lm.report import page

HOSTILE = "</pre><script>alert(1)</script>&\"'\x1b\x00"


@pytest.mark.parametrize(
    "piece",
    [
        lambda text: page.page(text, text, text),
        lambda text: page.section(text, text),
        lambda text: page.notice(text),
        lambda text: page.paragraph(text),
        lambda text: page.heading(text),
        lambda text: page.statements([(text, text)]),
        lambda text: page.numbers([(text, text, text)]),
        lambda text: page.table([text], [[text]]),
        lambda text: page.facts({text: text}),
        lambda text: page.fold(text, text),
        lambda text: page.figure(page.Markup("<svg></svg>"), text, text),
        lambda text: page.grid(text),
        lambda text: page.bar([(text, 0.5, "red")]),
        lambda text: page.keyed(text, "red"),
        lambda text: page.verbatim(text),
    ],
)
def test_text_is_escaped_and_loses_its_control_characters(piece):
    out = piece(HOSTILE)
    assert isinstance(out, page.Markup)
    assert "<script" not in out
    assert "&lt;script&gt;" in out
    assert "\x1b" not in out
    assert "\x00" not in out


def test_markup_is_not_escaped_twice():
    assert page.section("x", page.verbatim("a < b")).count("&lt;") == 1
    assert "&amp;lt;" not in page.section("x", page.verbatim("a < b"))


def test_absent_pieces_are_left_out():
    assert page.join([None, "a", None]) == "a"


def test_number_columns_are_marked_in_head_and_body():
    out = page.table(["name", "loss"], [["x", "1.0"]], numeric=[1])
    assert '<th scope="col" class="number">loss</th>' in out
    assert '<td class="number">1.0</td>' in out
    assert "<td>x</td>" in out
