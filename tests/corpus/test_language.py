"""Languages: told apart, from a bounded part of the text."""

import pytest

from lm.corpus.language import Language, identify, sample
from lm.corpus.record import Record
from lm.errors import ConfigError

ENGLISH = "The committee will meet again next week to discuss the report that was published in the spring. "
GERMAN = "Der Ausschuss wird nächste Woche wieder tagen, um den im Frühjahr veröffentlichten Bericht zu besprechen. "


def test_documents_in_other_languages_are_rejected_and_all_are_named():
    step = Language(("en",))
    english, german = Record("1", ENGLISH), Record("2", GERMAN)
    assert step(english) is None
    assert step(german).rule == "language/other"
    assert english.metadata["language"] == "en" and german.metadata["language"] == "de"
    assert 0.9 < english.metadata["language_score"] <= 1
    assert Language(("de", "en"))(german) is None
    assert Language()(german) is None


def test_a_score_below_the_least_is_unsure_and_so_is_text_without_letters():
    record = Record("1", ENGLISH)
    assert Language(("en",), 1.1)(record).rule == "language/unsure"  # no probability is that high
    assert Language(("en",))(Record("2", "12345 +++ 67")).rule == "language/unsure"
    assert identify("") == identify("...") == ("und", 0.0)


def test_of_a_long_document_beginning_middle_and_end_are_judged():
    text = "begin " * 2000 + "centre " * 2000 + "finish " * 2000
    part = sample(text)
    assert len(part) <= 3 * 700 + 2
    assert {"begin", "centre", "finish"} == set(part.split())
    assert sample(ENGLISH) == ENGLISH
    assert len(sample("東" * 10_000)) == 3 * 700 + 2  # no spaces to cut at
    assert identify(ENGLISH + GERMAN * 500)[0] == "de"


def test_a_language_that_the_model_does_not_know_is_refused():
    with pytest.raises(ConfigError, match='"eng" is not a language'):
        Language(("eng",))
