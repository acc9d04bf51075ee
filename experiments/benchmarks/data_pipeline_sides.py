"""The sides that `experiments.benchmarks.data_pipeline` compares, each run as a program of its own process.

    python experiments/benchmarks/data_pipeline_sides.py ours|datatrove|mwparserfromhell INPUTS.json RESULT.json

Writes, per stage, CPU seconds of one process and a count to compare: what was kept, or how many tokens there are. What
loads when it is first used is loaded before the clock starts. A side leaves out the stages that it does not have. With
`datatrove-chain` as the side, INPUTS.json names the documents, and RESULT.json is the folder to work in.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Stage = Callable[[], int]
FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb_quality")
BANDS, ROWS, WORDS = 14, 8, 5  # FineWeb's
_WARM = "What loads when it is first needed, loads with this text of a few words. It says nothing more than that. " * 3


def ours(inputs: dict[str, Any]) -> dict[str, Callable[[], Stage]]:
    """Return our stages: each a function that makes ready and returns what is timed."""
    from lm.corpus.config import SourceConfig
    from lm.corpus.readers import find_reader
    from lm.corpus.record import Record

    def through(reader: str, paths: list[str]) -> Stage:
        source = SourceConfig(reader=reader)
        found = find_reader(reader)

        def stage() -> int:
            steps, kept = found.steps(source), 0
            for path in paths:
                for record in found.read(path, source, lambda where, reason: None):
                    kept += all(step(record) is None for step in steps)
            return kept

        return stage

    def wiki() -> Stage:
        return through("wikipedia", inputs["dumps"])

    def web() -> Stage:
        through("web", inputs["warcs"][-1:])()  # loads the libraries
        return through("web", inputs["warcs"])

    def filters() -> Stage:
        from lm.corpus.filters import find_filters

        steps = find_filters(FILTERS)
        for step in steps:
            step(Record("", _WARM))
        return lambda: sum(all(step(record) is None for step in steps) for record in map(as_record, inputs["texts"]))

    def as_record(text: str) -> Record:
        return Record("", text)

    def minhash() -> Stage:
        from lm.corpus.dedup.minhash import MinHash
        from lm.corpus.dedup.shingles import shingle_set

        hashes = MinHash(BANDS, ROWS)
        hashes.signature(shingle_set(_WARM, WORDS))

        def stage() -> int:
            sets = (shingle_set(text, WORDS) for text in inputs["texts"])
            return sum(len(hashes.signature(shingles)) > 0 for shingles in sets if len(shingles))

        return stage

    def tokenize() -> Stage:
        from lm.tokenizer import encode_documents, load_tokenizer

        tokenizer = load_tokenizer("gpt2")
        tokenizer.encode(_WARM)
        return lambda: sum(map(len, encode_documents(tokenizer, inputs["texts"], workers=1)))

    return {"wiki": wiki, "web": web, "filters": filters, "minhash": minhash, "tokenize": tokenize}


def datatrove(inputs: dict[str, Any]) -> dict[str, Callable[[], Stage]]:
    """Return datatrove's stages; it has no reader of Wikipedia's dumps."""
    from datatrove.data import Document

    def web() -> Stage:
        from datatrove.pipeline.extractors import Trafilatura

        extractor = Trafilatura(favour_precision=True, timeout=60)  # called without its process for each document
        extractor.extract("<html><body><p>" + _WARM + "</p></body></html>")
        return lambda: sum(bool(extractor.extract(page)) for page in inputs["pages"])

    def filters() -> Stage:
        steps = _filters()
        for step in steps:
            step.filter(Document(text=_WARM, id=""))
        return lambda: sum(
            all(step.filter(document) is True for step in steps)
            for document in (Document(text=text, id="") for text in inputs["texts"])
        )

    def minhash() -> Stage:
        from datatrove.pipeline.dedup import MinhashDedupSignature

        step = MinhashDedupSignature(inputs["folder"], _minhash())
        step.get_signature(step.get_shingles(_WARM))

        def stage() -> int:
            sets = (step.get_shingles(text) for text in inputs["texts"])
            return sum(len(step.get_signature(shingles)) > 0 for shingles in sets if shingles.size)

        return stage

    def tokenize() -> Stage:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(inputs["tokenizer"])
        tokenizer.encode(_WARM)
        texts, batch = inputs["texts"], 1000  # as DocumentTokenizer does
        # One end-of-text for each document, as ours.
        return lambda: (
            len(texts)
            + sum(
                len(encoding.ids)
                for start in range(0, len(texts), batch)
                for encoding in tokenizer.encode_batch(texts[start : start + batch])
            )
        )

    return {"web": web, "filters": filters, "minhash": minhash, "tokenize": tokenize}


def mwparserfromhell(inputs: dict[str, Any]) -> dict[str, Callable[[], Stage]]:
    """Return what one does without a renderer: mwxml's pages through `strip_code`."""

    def wiki() -> Stage:
        import bz2

        import mwparserfromhell
        import mwxml

        mwparserfromhell.parse("'''a''' [[b]] {{c}}").strip_code()

        def stage() -> int:
            kept = 0
            for path in inputs["dumps"]:
                with bz2.open(path) as file:
                    for dumped in mwxml.Dump.from_file(file):
                        for revision in dumped:
                            if not dumped.redirect:
                                kept += bool(mwparserfromhell.parse(revision.text or "").strip_code())
            return kept

        return stage

    return {"wiki": wiki}


def _filters() -> list:
    """Return datatrove's filters as FineWeb calls them."""
    from datatrove.pipeline import filters

    return [
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    ]


def _minhash():
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)


def save_tokenizer(encoder: str, merges: str, path: str) -> None:
    """Write GPT-2's own files as one that `tokenizers` reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(encoder, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(path)


def datatrove_chain(documents: str, folder: str) -> None:
    """Filter, deduplicate and tokenize a file of JSON lines, as datatrove's examples do, in one process."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    config, at = _minhash(), lambda name: os.path.join(folder, name)
    source = JsonlReader(os.path.dirname(documents), glob_pattern=os.path.basename(documents), compression=None)
    chain = [
        ([source, *_filters(), JsonlWriter(at("kept"))], 1),
        ([JsonlReader(at("kept")), dedup.MinhashDedupSignature(at("signatures"), config)], 1),
        ([dedup.MinhashDedupBuckets(at("signatures"), at("buckets"), config=config)], BANDS),
        ([dedup.MinhashDedupCluster(at("buckets"), at("clusters"), config=config)], 1),
        (
            [
                JsonlReader(at("kept")),
                dedup.MinhashDedupFilter(at("clusters")),
                DocumentTokenizer(
                    at("tokens"), local_working_dir=at("shuffle"), tokenizer_name_or_path=at("tokenizer.json")
                ),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(chain):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=at(f"logs{number}")).run()


def main(side: str, inputs_file: str, out: str) -> None:
    if side == "datatrove-chain":
        datatrove_chain(inputs_file, out)
        return
    with open(inputs_file) as file:
        inputs = json.load(file)
    if side == "datatrove":
        save_tokenizer(*inputs["gpt2"], inputs["tokenizer"])
    result = {}
    for name, make in {"ours": ours, "datatrove": datatrove, "mwparserfromhell": mwparserfromhell}[side](
        inputs
    ).items():
        stage = make()
        start = time.process_time()
        count = stage()
        result[name] = {"seconds": time.process_time() - start, "count": count}
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
