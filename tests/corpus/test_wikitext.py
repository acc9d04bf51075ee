"""Wikitext reads as the article does, whatever it holds."""

import os
import re

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import wikipedia
from lm.corpus.readers.wikitext import Wikitext, render
from lm.corpus.record import Record

CASES = [  # wikitext, text
    ("[[A]], [[B|b]]s, [[:Category:C]], [[D (d)#e|]]", "A, bs, Category:C, D (d)#e"),
    ("x [[File:a.jpg|thumb|a [[b|c]] of [http://d e]]] y", "x y"),
    ("[[Datei:a.jpg|mini]]x [[Файл:b.png]]y[[Category:C]] [[Kategorie:D]] [[fr:Titre]]", "x y"),
    ("[http://a.org label] [http://a.org] [[http://b.org c]] [//c.org d e]", "label c d e"),
    ("'''bold''' ''italic'' '''''both''''' l'''amour''' don't", "bold italic both lamour don't"),
    ("The ''Ship'''s bow", "The Ship's bow"),
    ("a<ref name=x>{{cite|a}} [[b]]</ref> b<ref name=x /> c<ref>d", "a b cd"),
    ("a <!-- b [[c --> d", "a d"),
    ("a <!-- never closed", "a"),
    ("1&nbsp;&lt; 2 &amp;&ndash; x&#8217;s", "1 < 2 &– x’s"),
    ("x<sup>2</sup> H<sub>2</sub>O 19<sup>th</sup> <span style='a'>b</span> 3 < 4", "x^2 H2O 19th b 3 < 4"),
    ("<nowiki>[[a]] ''b''</nowiki> <code>c[[0]]</code> <math>f''(x) = {{a}}</math>", "[[a]] ''b'' c0 $f''(x) = {{a}}$"),
    ("a\n{|\n|b\n{|\n|c\n|}\n|}\nd", "a\n\nd"),
    ("a\n\n<table><tr><td>b</td></tr></table>\n\nc", "a\n\nc"),
    ("{{Infobox|a={{b|c}}|d=[[e|f]]\n|g=\n{|\n|h\n|}}}\nText.", "Text."),
    ("{{convert|1500|km2|sqmi}}, {{cvt|5|to|10|C|F}}, {{convert|6|ft|2|in}}", "1,500 km², 5 to 10 °C, 6 ft 2 inches"),
    ("{{lang|fr|mot}} {{lang-de|Wort}} {{langx|ru|слово}} {{nihongo|Tea|茶|cha}}", "mot German: Wort Russian: слово Tea (茶, cha)"),
    ("{{nowrap|a b}} {{circa|1500}} {{frac|1|2}} {{as of|2010|5}} a{{spaced ndash}}b", "a b c. 1500 1/2 As of May 2010 a – b"),
    ("Ava ({{IPA|a}}; {{x}}, born 1990) was ({{x}}) here ({{x}}; {{y}}), in main().", "Ava (born 1990) was here, in main()."),
    ("born ({{x}}, 1990; {{y}}) {{z}}, ok", "born (1990), ok"),
    ("a\n\nb\nc<br>d\n\n\n\n e", "a\n\nb c\nd\n\n e"),
    ("* a\n* b\n** c\n# d\n# e\n## f\n# g", "- a\n- b\n  - c\n1. d\n2. e\n  1. f\n3. g"),
    ("; term\n: meaning\n* {{cite book|a}} online\n* {{flagicon|x}} Chad", "term\n\nmeaning\n- Chad"),
    ("== A ==\ntext\n=== B ===\n== C ==\n\n=== D ===\nmore", "A\n\ntext\n\nC\n\nD\n\nmore"),
    ("a\n== See also ==\n* b\n=== c ===\nd\n== E ==\nf\n==References==\n{{reflist}}", "a\n\nE\n\nf"),
    ("a\n== Weblinks ==\n* [http://b c]\n== Liens externes ==\nd", "a"),
    ("<poem>\na\n''b''\n</poem>", "a\nb"),
    ("<gallery>\nFile:a.jpg|b\n</gallery>c __NOTOC__{{DEFAULTSORT:x}}", "c"),
    ("<syntaxhighlight lang=c>\nif (a[[0]]) {\n  x;\n}\n</syntaxhighlight>", "if (a[[0]]) {\n  x;\n}"),
    ("Code:\n  a = [1]\n  b", "Code:\n\n  a = [1]\n  b"),
    ("{{quote|To be.|Hamlet}}", "To be.\n\n— Hamlet"),
    ("{{PAGENAME}} {{formatnum:1234}} {{{1|d}}}", "Title 1234 d"),
    ("a ]] b }} c {{ d [[ e", "a b c d e"),
    ("{{never|closed [[a|b]] ''c''", "never|closed b c"),
    ("[[File:never closed|x\nText [[a]].", "Text a."),
    ("{| never closed\n| cell\n|}\nText", "Text"),
    ("{| never closed\n| cell\n\nText", "Text"),
    ("a \x7f0\x7f \x01 b", "a 0 b"),
]  # fmt: skip


@pytest.mark.parametrize("wikitext, text", CASES)
def test_wikitext_reads_as_the_article(wikitext, text):
    assert render(wikitext, "Title") == text.strip()


def test_what_is_left_out_is_counted():
    step = Wikitext()
    assert step(Record("a", "x<ref>y</ref> {{z}} [[File:a]]\n{|\n|}\n")) is None
    assert step.counts == {"references": 1, "templates": 1, "files": 1, "tables": 1}


@pytest.mark.parametrize(
    "text, metadata, rule",
    [
        ("#REDIRECT [[A]]", {}, "redirect"),
        ("text", {"drop": {"rule": "namespace", "value": 10}}, "namespace"),
        ("'''A''' may be:\n* b\n{{disambiguation|geo}}", {}, "disambiguation"),
        ("'''A''' kann sein:\n* b\n{{Begriffsklärung}}", {}, "disambiguation"),
        ("__DISAMBIG__ A", {}, "disambiguation"),
        ("{{Infobox|a}}\n[[Category:B]]\n== References ==\nx", {}, "empty"),
    ],
)
def test_pages_that_are_no_articles_are_rejected(text, metadata, rule):
    assert Wikitext()(Record("a", text, metadata=metadata)).rule == f"wikipedia/{rule}"


def test_a_mention_of_disambiguation_is_no_disambiguation_page():
    for text in (
        "A {{disambiguation needed}} b",
        "{{Other uses|A (disambiguation)}} b",
        "{{About|a}} {{Hatnote|disambig}} b",
    ):
        assert Wikitext()(Record("a", text)) is None


@pytest.mark.parametrize(
    "unit",
    ["[[", "{{", "{{a|", "[[File:x|", "<ref>", "'''", "{|\n", "(", "{{x}},", "({{x}};", "= ", "<poem>", "[http://a ", "<!--", "<nowiki>",
     "a\n", "[[a]]]", "{{a|[[b}}", "[[a|{{b]]", "[[a|b]", "{{nowrap|", "<table>", "#:"],
)  # fmt: skip
def test_work_grows_with_the_length_of_a_page_not_faster(unit):
    """Counted in calls; what is quadratic inside one call would hang the next test."""
    import sys

    def calls(times: int) -> int:
        count = 0

        def profile(frame, event, argument):
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            render(unit * times + "}}]]</ref></poem>")
        finally:
            sys.setprofile(None)
        return count

    assert calls(4000) < 5 * calls(1000) + 1000


def test_a_page_of_a_hundred_thousand_brackets_is_rendered():
    for opening, closing in (
        ("[[a|", "]]"),
        ("{{nowrap|", "}}"),
        ("{|\n", "|}\n"),
        ("<ref>", "</ref>"),
        ("({{x}},", ")"),
    ):
        render(opening * 20_000 + closing * 20_000)


@pytest.mark.real_data
def test_real_articles_keep_next_to_no_markup(real_data):
    path = os.path.join(real_data, "wiki", "enwiki-pages-articles1-shortened.xml.bz2")
    step, articles, rejected = Wikitext(), [], []
    for record in wikipedia.read(path, SourceConfig(reader="wikipedia"), lambda *told: None):
        rejection = step(record)
        (rejected if rejection else articles).append(rejection or record.text)
    assert [rejection.rule for rejection in rejected].count("wikipedia/redirect") == 100
    assert len(articles) == 98
    left = sum(len(re.findall(r"\[\[|\{\{|thumb\||<ref|''", text)) for text in articles)
    assert left < 0.1 * len(articles)
    assert sum(map(len, articles)) > 2_500_000
