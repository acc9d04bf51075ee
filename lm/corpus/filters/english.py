"""English words as spaCy's tokenizer splits them: the definition under which datatrove's counts are published.

The rules are those of https://spacy.io/usage/linguistic-features#how-tokenizer-works, of spaCy 3.8's English defaults.
A chunk without white space loses prefixes and suffixes one at a time, unless what is left is a special case or a URL,
and is then cut at infixes; special cases that affixes took apart are joined again at the end. Scripts other than
Latin, Greek and Cyrillic follow Unicode's categories where spaCy has lists, units are Latin, emoticons ASCII, and a
special case is never looked for across white space. A text repeats its chunks, so each is split once: what a text costs
is a look-up per chunk.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

_CACHED_CHUNKS, _CACHED_LENGTH = 2**17, 40  # at most about 30 MB
_LONGEST_URL = 2000  # characters; the pattern's time grows with the square

# Contractions: these words with these endings, with and without apostrophes, each also capitalized.
_CONTRACTIONS = (
    ("i", ("'m", "'m a")),
    ("i you he she it we they", ("'ll", "'ll 've", "'d", "'d 've")),
    ("who what when where why how there that this these those", ("'ll", "'ll 've", "'d", "'d 've")),
    ("i you we they who what when where why how there these those could might must should would", ("'ve",)),
    ("you we they who what when where why how there these those", ("'re",)),
    ("he she it who what when where why how there that this", ("'s",)),
    ("ca could do does did had may might must need ought sha should wo would", ("n't", "n't 've")),
    ("ai are is was were have has dare", ("n't",)),
)
_NO_CONTRACTIONS = "ill its hell shell shed were well whore"  # though they look like some without the apostrophe
_SPLIT = ("not 've", "not ve", "can not", "gon na", "got ta", "let 's", "c'm on", "how 'd 'y")  # also capitalized
_KEPT = "ma'am o'clock 'cause 'cos 'coz 'cuz doin' goin' havin' lovin' nothin' nuthin' ol' somethin'"  # the same
_AS_IS = "'s 'S ‘s ‘S 'd 're 'em 'll 'nuff 'bout ' '' — and/or w/o C++ <space> \\n \\t \\\")"
_ABBREVIATIONS = (  # with their full stop
    "Ak Ala Apr Ariz Ark Aug Calif Colo Conn Dec Del Feb Fla Ga Ia Id Ill Ind Jan Jul Jun Kan Kans Ky La Mar Mass Mich "
    "Minn Miss N.C N.D N.H N.J N.M N.Y Neb Nebr Nev Nov Oct Okla Ore Pa S.C Sep Sept Tenn Va Wash Wis Mt "
    "a.m p.m Adm Bros co Co Corp D.C Dr e.g E.g E.G Gen Gov i.e I.e I.E Inc Jr Ltd Md Messrs Mo Mont Mr Mrs Ms Ph.D "
    "Prof Rep Rev Sen St vs v.s a b c d e f g h i j k l m n o p q r s t u v w x y z ä ö ü"
)
_MOUTHS = ") )) ))) ( (( ((( ] } / p P o O 0 * 3 > x X D"  # after `:` and `:-`
_EMOTICONS = (
    ":| :-| :1 :() (: (-: [: [-: :o) (o: =) (= =] [= =( ]= =[ =/ =| =3 =D 8) 8-) (-8 8D 8-D ;) ;-) (; (-; ;D ;-D ): )-: >:( "
    ">:o :') :'-) :'( :'-( xD XD xDD XDD ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O "
    "0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*)"
)

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = "$£€¥฿﷼\u20a0-\u20bf"
_UNITS = (
    r"[kdcm]?m[²³]?|ha|[µn]m|yd|in|ft|[kmµ]?g|t|lb|oz|k?m/[sh]|kmh|mph|h?Pa|mbar|[kmgt]b|[KMGT]B?|%"  # after a digit
)


@functools.cache
def _characters() -> dict[str, str]:
    """Return Unicode's letters and symbols as the insides of regular-expression classes."""

    def inside(characters: Iterable[str]) -> str:
        runs: list[list[str]] = []
        for character in characters:
            if runs and ord(character) == ord(runs[-1][1]) + 1:
                runs[-1][1] = character
            else:
                runs.append([character, character])
        return "".join(f"{first}-{last}" for first, last in runs)

    blocks = ((0x80, 0x3400), (0x4DC0, 0x4E00), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1F000, 0x1FB00))
    characters = [chr(code) for first, end in blocks for code in range(first, end)]
    letters = list(filter(str.isalpha, characters))
    between = "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"  # Han and Hangul, letters all
    return {  # a letter without case counts as both
        "alpha": "A-Za-z" + between + inside(letters),
        "lower": "a-z" + between + inside(letter for letter in letters if not letter.isupper()),
        "upper": "A-Z" + between + inside(letter for letter in letters if not letter.islower()),
        "icons": inside(character for character in characters if unicodedata.category(character) == "So"),
    }


def _special_cases() -> dict[str, tuple[str, ...]]:
    """Return the chunks that have tokens of their own."""
    cases: dict[str, tuple[str, ...]] = {}

    def add(*tokens: str) -> None:
        for case in (tokens, tuple(token.replace("'", "’") for token in tokens)):
            cases["".join(case)] = case

    def add_both(first: str, *others: str) -> None:
        add(first, *others)
        add(re.sub("[a-z]", lambda letter: letter[0].upper(), first, count=1), *others)

    for words, endings in _CONTRACTIONS:
        for word, ending in itertools.product(words.split(), endings):
            add_both(word, *ending.split())
            bare = ending.replace("'", "")
            if word + bare not in _NO_CONTRACTIONS.split():
                add_both(word, *bare.split())
    for tokens in _SPLIT:
        add_both(*tokens.split())
    for token in _KEPT.split():
        add_both(token)
    add("y'", "all")
    add("y", "all")
    for hour, half in itertools.product(range(1, 13), ("am", "a.m.", "pm", "p.m.")):
        add(str(hour), half)
    for scale in "cfkCFK":
        add("°", scale, ".")
    eyes = (eye + mouth for eye, mouth in itertools.product((":", ":-"), _MOUTHS.split()))
    for token in (*_AS_IS.split(), *_EMOTICONS.split(), *eyes, *(f"{word}." for word in _ABBREVIATIONS.split())):
        add(token)
    return cases


class EnglishWords:
    """Splits English text into words, keeping what it has split."""

    def __init__(self):
        has = _characters()
        quotes, punctuation = re.escape(_QUOTES), re.escape(_PUNCTUATION)
        alpha, lower, upper, icons = has["alpha"], has["lower"], has["upper"], has["icons"]
        single = rf"{punctuation}{quotes}{icons}—–"
        self._prefix = re.compile(rf"\.\.+|\+(?![0-9])|US\$|[CA]\$|[§%={single}{_CURRENCY}]").match
        after_digit = rf"(?<=[0-9])(?:\+|US\$|[CA]\$|[{_CURRENCY}]|{_UNITS})"
        self._suffix = re.compile(rf"(?:……|['’][sS]|[{single}]|{after_digit})\Z").search
        # `|(?:)` are characters here: so spaCy's class reads, and a full stop after a bracket is a suffix by them too.
        before_stop = rf"[0-9%²\-+|(?:){lower}{punctuation}{quotes}]|[{upper}][{upper}]|°[FCK]"
        self._stop = re.compile(rf"(?:{before_stop})\Z").search
        letters_around = (
            rf"(?<=[{alpha}0-9])(?:-{{1,3}}|–|—{{1,2}}|~|[:<>=/])(?=[{alpha}])|(?<=[{alpha}]),(?=[{alpha}])"
        )
        stop_inside = rf"(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])"
        self._infix = re.compile(
            rf"\.\.+|…|[{icons}]|(?<=[0-9])[+\-*^](?=[0-9-])|{letters_around}|{stop_inside}"
        ).finditer
        host = r"A-Za-z0-9\u00a1-\uffff"
        public = r"(?!(?:10|127|169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.)[1-9]\d{0,2}(?:\.\d{1,3}){3}"
        self._url = re.compile(
            rf"(?:[\w+\-.]{{2,}}://)?(?:\S+(?::\S*)?@)?"
            rf"(?:{public}|(?:(?:[{host}][{host}_-]{{0,62}})?[{host}]\.)+[{lower}]{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?"
        ).fullmatch

        self._cases: dict[str, tuple[str, ...]] = {}
        cases = _special_cases()
        self._longest = max(map(len, cases))
        self._taken_apart: dict[str, list[tuple[str, ...]]] = {}  # by first token, of the cases that affixes split
        for case in cases:
            if self._prefix(case) or self._suffix_length(case, 0, len(case)) or any(self._infix(case)):
                tokens = tuple(self._split(case))
                self._taken_apart.setdefault(tokens[0], []).append(tokens)
        self._cases = cases
        self._chunks = _Cache(self._tokens)

    def __call__(self, text: str) -> list[str]:
        """Return the words, punctuation marks included, without white space."""
        return list(itertools.chain.from_iterable(map(self._chunks.__getitem__, text.split())))

    def with_spaces(self, text: str) -> Iterator[str]:
        """Yield the words, and white space other than a single space between them."""
        for run in re.findall(r"\S+|\s+", text):
            if not run.isspace():
                yield from self._chunks[run]
            elif run != " ":
                yield run

    def _tokens(self, chunk: str) -> tuple[str, ...]:
        if chunk in self._cases:
            return self._cases[chunk]
        if chunk.isalpha() or chunk.isdecimal():
            return (chunk,)
        word, mark = chunk[:-1], chunk[-1]
        if (
            word.isalpha()
            and word not in self._cases
            and (mark in ",?!:;)" or (mark == "." and "a" <= word[-1] <= "z"))
        ):
            return word, mark  # what the rules below come to, for most chunks
        return self._rejoin(self._split(chunk))

    def _case(self, chunk: str, start: int, end: int) -> tuple[str, ...] | None:
        return self._cases.get(chunk[start:end]) if end - start <= self._longest else None

    def _suffix_length(self, chunk: str, start: int, end: int) -> int:
        if end <= start:
            return 0
        if chunk[end - 1] != ".":
            found = self._suffix(chunk[max(start, end - 8) : end])  # no suffix is longer
            return found.end() - found.start() if found else 0
        stops = 1
        while end - stops > start and chunk[end - stops - 1] == ".":
            stops += 1
        if stops > 1:
            return stops
        return 1 if self._stop(chunk[max(start, end - 3) : end - 1]) else 0

    def _split(self, chunk: str) -> list[str]:
        start, end = 0, len(chunk)
        before: list[str] = []
        after: list[str] = []
        while start < end and self._case(chunk, start, end) is None:
            prefix = self._prefix(chunk, start, end)
            inner = prefix.end() if prefix else start
            if inner > start and inner < end and self._case(chunk, inner, end) is not None:
                before.append(chunk[start:inner])
                start = inner
                break
            outer = end - self._suffix_length(chunk, inner, end)
            if outer < end and outer > start and self._case(chunk, start, outer) is not None:
                after.append(chunk[outer:end])
                end = outer
                break
            if inner == start and outer == end:
                break
            if inner > start:
                before.append(chunk[start:inner])
            if outer < end:
                after.append(chunk[outer:end])
            start, end = inner, outer
        if start < end:
            before += self._case(chunk, start, end) or self._cut(chunk[start:end])
        return before + after[::-1]

    def _cut(self, chunk: str) -> list[str]:
        """Return a chunk without affixes cut at its infixes."""
        if chunk.isalnum() or ("." in chunk and len(chunk) <= _LONGEST_URL and self._url(chunk)):
            return [chunk]
        tokens, start = [], 0
        for infix in self._infix(chunk):
            if infix.start() > 0:
                tokens += (chunk[start : infix.start()], infix[0])
                start = infix.end()
        return [token for token in (*tokens, chunk[start:]) if token]

    def _rejoin(self, tokens: list[str]) -> tuple[str, ...]:
        """Return the tokens with the special cases among them as they should be, the longest first."""
        found = [
            (len(case), -at, case)
            for at, token in enumerate(tokens)
            if token in self._taken_apart
            for case in self._taken_apart[token]
            if tuple(tokens[at : at + len(case)]) == case
        ]
        if not found:
            return tuple(tokens)
        out: list[tuple[str, ...]] = [(token,) for token in tokens]
        seen: set[int] = set()
        for length, negative, case in sorted(found, reverse=True):
            span = range(-negative, length - negative)
            if span[0] not in seen and span[-1] not in seen:
                out[span[0] : span[-1] + 1] = [self._cases["".join(case)], *[()] * (length - 1)]
            seen.update(span)
        return tuple(itertools.chain.from_iterable(out))


class _Cache(dict):
    """What a function of a text returned, for short texts; emptied when it is full."""

    def __init__(self, function: Callable[[str], tuple[str, ...]]):
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> tuple[str, ...]:
        tokens = self._function(text)
        if len(text) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
            self[text] = tokens
        return tokens
