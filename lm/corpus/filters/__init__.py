"""The published filters: Gopher's, C4's and FineWeb's, each a document step with its thresholds from one table."""

from collections.abc import Callable, Sequence

from lm.corpus.filters.c4 import C4
from lm.corpus.filters.fineweb import FinewebQuality
from lm.corpus.filters.gopher import GopherQuality, GopherRepetition
from lm.corpus.filters.table import thresholds_table
from lm.corpus.record import Step
from lm.errors import ConfigError, did_you_mean
from lm.extensions import load_extension

__all__ = ["FILTERS", "Step", "find_filters", "thresholds_table"]


Factory = Callable[[str], Step]  # called with the documents' language

# FineWeb asks them in this order. C4 changes the text that those after it see.
FILTERS: dict[str, Factory] = {
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "c4": C4,
    "fineweb_quality": FinewebQuality,
}


def find_filters(names: Sequence[str], language: str = "en") -> list[Step]:
    """Return the filters of these names, in their order.

    Args:
      names: of FILTERS, or "package.module:Name" of a function of a language that returns a step: there, a published
        filter with another threshold is one line, `lambda language: GopherQuality(language, short=20)`.
      language: ISO 639-1 code of the documents'; decides what a word is. The thresholds were chosen for English.

    Raises:
      ConfigError: an unknown name.
    """
    return [_factory(name)(language) for name in names]


def _factory(name: str) -> Factory:
    if ":" in name:
        return load_extension("sources.filters", name)
    if name not in FILTERS:
        raise ConfigError(
            f'There is no filter "{name}".{did_you_mean(name, FILTERS)} '
            f'Known: {", ".join(FILTERS)}, or "package.module:Name".'
        )
    return FILTERS[name]
