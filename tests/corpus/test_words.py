"""English words are spaCy's, as its rules give them; other languages' are runs of letters."""

import pytest

from lm.corpus.filters import english
from lm.corpus.filters.english import EnglishWords
from lm.corpus.filters.words import analyse, count_sentences, is_symbol, splitter

ENGLISH = {  # text: its words, as spaCy 3.8 splits them, with a space between
    "Hello, world!": "Hello , world !",
    '("Well...said?")': '( " Well ... said ? " )',
    "I don't think they'd've come, he can’t’ve": "I do n't think they 'd 've come , he ca n’t ’ve",
    "Dont cannot gonna C’mon y'all let's": "Do nt can not gon na C’m on y' all let 's",
    "Its hell; it's well, were they ill? Shes here": "Its hell ; it 's well , were they ill ? She s here",
    "the dogs' owner's O'Neill ma'am 'em": "the dogs ' owner 's O'Neill ma'am 'em",
    "U.S.A. vs. the U.K. (e.g. Dr. Smith, Jan. 3) at 5p.m. or 5pm.": (
        "U.S.A. vs. the U.K. ( e.g. Dr. Smith , Jan. 3 ) at 5 p.m. or 5 pm ."
    ),
    "end.Start mid.dle a.b.c WXYZ. I. x.": "end . Start mid.dle a.b.c WXYZ . I. x.",
    "state-of-the-art 1990-95 5-fold --flag a--b x—y – z": (
        "state - of - the - art 1990 - 95 5 - fold --flag a -- b x — y – z"
    ),
    "10km, 5kg. 20% $5.00 US$7 £3m 6+ +7 +x C++": "10 km , 5 kg . 20 % $ 5.00 US$ 7 £ 3 m 6 + +7 + x C++",
    "either/or and/or a=b 5:30 key:value x,y 1,000": "either / or and/or a = b 5:30 key : value x , y 1,000",
    "See http://example.com/a-b?c=d, www.example.org. or me@example.com!": (
        "See http://example.com/a-b?c=d , www.example.org . or me@example.com !"
    ),
    "nice:) :-D <3 ok;) (^_^) [x]:)": "nice :) :-D <3 ok ;) (^_^) [ x ] :)",
    "wow☺☺ café™ naïve…yes ©2020 30°C.": "wow ☺ ☺ café ™ naïve … yes © 2020 30 ° C .",
    "_under_ *bold* `code` #tag @name": "_ under _ * bold * ` code ` # tag @name",
    "one\ttwo\n\nthree\u00a0four": "one two three four",
    "": "",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_split_as_spacy_splits_it(text):
    assert splitter("en")(text) == ENGLISH[text].split()


def test_no_character_is_lost_however_a_text_is_punctuated():
    marks = "a1.,'\"-:;()[]!?…$%#@/\\’s_+°é漢 \n"
    state = 1
    for _ in range(300):
        text = ""
        for _ in range(40):
            state = state * 48271 % (2**31 - 1)
            text += marks[state % len(marks)]
        assert "".join(splitter("en")(text)) == "".join(text.split())
        assert "".join(splitter("fr")(text)) == "".join(text.split())


def test_a_full_cache_changes_nothing(monkeypatch):
    monkeypatch.setattr(english, "_CACHED_CHUNKS", 3)
    words, text = EnglishWords(), "don't stop; it's 5pm, they'll come. don't stop!"
    assert words(text) == words(text) == splitter("en")(text)
    assert len(words._chunks) <= 3


def test_a_long_chunk_without_spaces_is_split_without_being_kept():
    words = EnglishWords()
    assert len(words("x," * 200_000)) == 400_000
    assert words("!" * 200_000) == ["!"] * 200_000
    assert not words._chunks


@pytest.mark.parametrize(
    "text, count",
    [
        ("No end", 1),
        ("One. Two! Three? Four", 4),
        ('He said "no." Then he left.', 2),
        ("Dr. Smith of the U.S. came at 5 p.m. and left", 1),
        ("Wait... what?! Yes", 2),
        ("Ends here.  - A dash", 2),
        ("Ends here.  . Again", 3),
        ("", 1),
    ],
)
def test_sentences_are_counted_as_spacys_sentencizer_counts_them(text, count):
    assert count_sentences(text) == count


def test_other_languages_are_split_at_white_space_and_punctuation():
    assert splitter("fr")("L'été, 3,5 % «déjà»!") == ["L", "'", "été", ",", "3", ",", "5", "%", "«", "déjà", "»", "!"]
    assert splitter("hi")("नमस्ते दुनिया।") == ["नमस्ते", "दुनिया", "।"]
    assert count_sentences("नमस्ते दुनिया। कैसे हो?", "hi") == 2


def test_symbols_are_words_without_a_letter_or_a_digit():
    assert all(map(is_symbol, ("...", "—", "“", "?!", "。")))
    assert not any(map(is_symbol, ("a", "3", "n't", "€", "+1")))


def test_a_text_is_analysed_once_for_all_that_ask():
    analysis = analyse("Some words here.")
    assert analyse("Some words here.") is analysis
    assert analysis.words is analysis.words
    assert list(analysis.counts) == ["Some", "words", "here", "."]
