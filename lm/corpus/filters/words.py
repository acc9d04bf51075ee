"""A document's words and sentences, found once for all filters that ask."""

import collections
import functools
import re
import unicodedata

from lm.corpus.filters.english import EnglishWords

_TERMINAL = (  # Unicode's property Sentence_Terminal, and the Khmer signs that datatrove counts too
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 "
    "17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e "
    "2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 "
    "fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 "
    "111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 "
    "11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f "
    "1da88"
)
_SYMBOLS = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"  # CCNet's punctuation
)
_CONTROL = "0-8 b-1f 7f-9f"


def _characters(ranges: str) -> str:
    bounds = [[int(code, 16) for code in part.split("-")] for part in ranges.split()]
    return "".join(chr(code) for first, *last in bounds for code in range(first, (last or [first])[0] + 1))


TERMINAL = frozenset(_characters(_TERMINAL))  # characters that end a sentence, and FineWeb's lines
SYMBOLS = frozenset(_SYMBOLS + _characters(_CONTROL)) | TERMINAL  # a word of nothing else is no word to Gopher
_ONLY_SYMBOLS = re.compile(f"[{re.escape(''.join(sorted(SYMBOLS)))}]*").fullmatch


def is_symbol(word: str) -> bool:
    """Return whether a word is made of punctuation and control characters alone."""
    return _ONLY_SYMBOLS(word) is not None


class PlainWords:
    """The words of any language that separates them: runs of letters, marks and digits; other marks one by one."""

    def __init__(self):
        signs = (chr(code) for code in range(0x80, 0x10000) if unicodedata.category(chr(code))[0] in "PS")
        inside = r"!-/:-@\[-`{-~" + "".join(map(re.escape, signs))
        self._words = re.compile(rf"[^\s{inside}]+|[{inside}]").findall

    def __call__(self, text: str) -> list[str]:
        """Return the words, punctuation marks included, without white space."""
        return self._words(text)

    with_spaces = __call__


@functools.cache
def splitter(language: str) -> EnglishWords | PlainWords:
    """Return what splits a language's text into words; for English, as spaCy does.

    Args:
      language: an ISO 639-1 code.
    """
    return EnglishWords() if language == "en" else PlainWords()


def count_sentences(text: str, language: str = "en") -> int:
    """Return how many sentences a text has, at least 1.

    A sentence ends where a word that is no punctuation follows a mark of `TERMINAL`, as in spaCy's sentencizer.
    """
    count, ended = 1, False
    for word in splitter(language).with_spaces(text):
        if word in TERMINAL:
            ended = True
        elif ended and not all(unicodedata.category(character)[0] == "P" for character in word):
            count, ended = count + 1, False
    return count


class Analysis:
    """What filters want to know of one text, each found when first asked for."""

    def __init__(self, text: str, language: str):
        self.text, self._language = text, language

    @functools.cached_property
    def words(self) -> list[str]:
        return splitter(self._language)(self.text)

    @functools.cached_property
    def counts(self) -> collections.Counter[str]:
        """How often each word stands there, in order of first appearance."""
        return collections.Counter(self.words)


@functools.lru_cache(maxsize=1)  # the filters of a chain are asked one after another about the same text
def analyse(text: str, language: str = "en") -> Analysis:
    """Return the analysis of a text, the same object for the text asked about last."""
    return Analysis(text, language)
