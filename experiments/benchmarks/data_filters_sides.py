"""The two sides that `experiments.benchmarks.data_filters` compares, each run as a program of its own process.

    python experiments/benchmarks/data_filters_sides.py ours|datatrove DOCUMENTS.json RESULT.json

Reads documents by set. Writes for each set what every filter, and the chain of them, says of every document, the text
that the chain leaves and the words; and for the set `timed` the CPU seconds.
"""

import json
import sys
import time
from collections.abc import Callable

Ask = Callable[[str], tuple[str | None, str]]  # a text -> the rule that it breaks, or None, and the text after it


def ours() -> tuple[dict[str, Callable[[], Ask]], Callable[[str], list[str]]]:
    """Return factories of our filters by name, and what splits words."""
    from lm.corpus.filters import FILTERS, find_filters
    from lm.corpus.filters.words import splitter
    from lm.corpus.record import Record

    def make(name: str) -> Ask:
        (step,) = find_filters([name])

        def ask(text: str) -> tuple[str | None, str]:
            record = Record("", text)
            rejection = step(record)
            return rejection and rejection.rule.partition("/")[2], record.text

        return ask

    return {name: lambda name=name: make(name) for name in FILTERS}, lambda text: splitter("en")(text)


def datatrove() -> tuple[dict[str, Callable[[], Ask]], Callable[[str], list[str]]]:
    """Return the same of datatrove, its filters as FineWeb calls them."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.text import split_into_words

    def make(kind: type, **options) -> Ask:
        step = kind(**options)

        def ask(text: str) -> tuple[str | None, str]:
            document = Document(text=text, id="")
            answer = step.filter(document)
            return (None if answer is True else answer[1]), document.text

        return ask

    filters = {
        "gopher_repetition": lambda: make(GopherRepetitionFilter),
        "gopher_quality": lambda: make(GopherQualityFilter),
        "c4": lambda: make(C4QualityFilter, filter_no_terminal_punct=False),
        "fineweb_quality": lambda: make(FineWebQualityFilter),
    }
    return filters, split_into_words


def forget() -> None:
    """Make both sides forget what they know of texts seen before."""
    if "datatrove.utils.text" in sys.modules:
        sys.modules["datatrove.utils.text"].split_into_parts.cache_clear()
    if "lm.corpus.filters.words" in sys.modules:
        sys.modules["lm.corpus.filters.words"].analyse.cache_clear()
        sys.modules["lm.corpus.filters.words"].splitter.cache_clear()


def chain(filters: list[tuple[str, Ask]], text: str) -> tuple[str | None, str]:
    """Return the first filter's rule that a text breaks, as `filter/rule`, or None, and the text that is left."""
    for name, ask in filters:
        rule, text = ask(text)
        if rule:
            return f"{name}/{rule}", text
    return None, text


def main(side: str, documents_file: str, result_file: str) -> None:
    with open(documents_file) as file:
        sets = json.load(file)
    started = time.process_time()
    factories, split = {"ours": ours, "datatrove": datatrove}[side]()
    split("What loads when it is first needed.")
    start_seconds = time.process_time() - started

    seconds = {}
    texts = sets["timed"]
    for name in [*factories, "chain"]:
        forget()
        split("What loads when it is first needed.")
        asks = [(each, make()) for each, make in factories.items() if name in (each, "chain")]
        started = time.process_time()
        for text in texts:
            chain(asks, text)
        seconds[name] = time.process_time() - started

    result = {"start_seconds": start_seconds, "seconds": seconds, "sets": {}}
    asks = [(name, make()) for name, make in factories.items()]
    for title, texts in sets.items():
        answers = {name: [ask(text)[0] for text in texts] for name, ask in asks}
        answers["chain"], left = map(list, zip(*(chain(asks, text) for text in texts), strict=True))
        result["sets"][title] = {"rules": answers, "left": left, "words": [split(text) for text in texts]}
    with open(result_file, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
