"""Which language a document is in: py3langid's naive Bayes over byte n-grams (Lui and Baldwin 2012, langid.py).

The model is in the package, so nothing is downloaded. It reads about 1 MB/s, and a few hundred words say as much as a
book: of a long document three pieces are judged, from its beginning, middle and end.
"""

import collections
import functools
import tempfile
from collections.abc import Collection

from lm.corpus.optional import require
from lm.corpus.record import Record, Rejection
from lm.errors import ConfigError, LmError, did_you_mean

_PIECE = 700  # characters


def sample(text: str, piece: int = _PIECE) -> str:
    """Return the text, or, of one longer than three pieces, its beginning, middle and end, cut at spaces if it has some."""
    if len(text) <= 3 * piece:
        return text
    middle = (len(text) - piece) // 2
    pieces = (text[:piece], text[middle : middle + piece], text[-piece:])
    return "\n".join(part.split(" ", 1)[-1].rsplit(" ", 1)[0] for part in pieces)


@functools.cache
def _identifier():
    """The model with probabilities, read once per process (0.3 s)."""
    langid = require("py3langid.langid")
    try:
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    except OSError as error:  # it unpacks its model into a temporary file
        raise LmError(
            f"py3langid cannot write its model in {tempfile.gettempdir()}: {error.strerror or error}."
        ) from error


def identify(text: str) -> tuple[str, float]:
    """Return a text's language (ISO 639-1) and its probability among those that the model knows; ("und", 0.0): no text.

    Raises:
      UsageError: py3langid is not installed.
    """
    piece = sample(text)
    if not any(map(str.isalpha, piece)):
        return "und", 0.0
    return _identifier().classify(piece)


class Language:
    """The document step that keeps some languages; sets `language` and `language_score`.

    Rejections: `language/other`, it is in another language (value: which); `language/unsure`, its language is asked for,
    but its probability is too low (value: the probability), or it has no letters at all.

    Args:
      languages: ISO 639-1 codes to keep; none: all, they are only named.
      min_score: probability that the language found must have, where languages are asked for; 0.65 is DCLM's and
        FineWeb's (there of fastText's model).

    Raises:
      ConfigError: a code that the model does not know.
      UsageError: py3langid is not installed.
    """

    name = "language"

    def __init__(self, languages: Collection[str] = (), min_score: float = 0.65):
        known = _identifier().labels
        for code in languages:
            if code not in known:
                raise ConfigError(
                    f'languages: "{code}" is not a language that can be told.{did_you_mean(code, known)} '
                    f"Accepted: {', '.join(sorted(known))}."
                )
        self._languages, self._min_score = frozenset(languages), min_score
        self.counts: collections.Counter = collections.Counter()

    def __call__(self, record: Record) -> Rejection | None:
        language, score = identify(record.text)
        record.metadata["language"], record.metadata["language_score"] = language, round(score, 4)
        if not self._languages:
            return None
        if language == "und":
            return Rejection("language/unsure", 0.0)
        if language not in self._languages:
            return Rejection("language/other", language)
        return Rejection("language/unsure", round(score, 4)) if score < self._min_score else None
