"""Small corpora and prepared folders."""

import json
import os
import random

import pytest

from lm import storage
from lm.config import DataConfig
from lm.data.build import assemble_manifest, build, write_shards
from lm.data.dataset import MANIFEST, TOKENIZER, open_data
from lm.data.document import Document
from lm.tokenizer import save

DOMAINS = {"wiki": 40, "books": 12, "code": 90}  # documents


def words(count: int, seed: int) -> str:
    """Return random words, the same ones for the same arguments."""
    draw = random.Random(seed).random
    return " ".join("abcdefghij"[: 1 + int(draw() * 9)] + str(int(draw() * 100)) for _ in range(count))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of 60 text files of 1 to 120 words, one of them non-ASCII."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number:02d}.txt").write_text(words(1 + number * 2, number), encoding="utf-8")
    (folder / "61.txt").write_text("naïve café — 日本語 " * 20, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def config(corpus):
    return DataConfig(
        source="text", path=str(corpus), tokenizer_vocab_size=320, validation_fraction=0.2, test_fraction=0.1, workers=1
    )


@pytest.fixture(scope="session")
def folder(config, tmp_path_factory):
    """The corpus as one shard per split."""
    out = str(tmp_path_factory.mktemp("prepared") / "data")
    build(config, out)
    return out


@pytest.fixture(scope="session")
def sharded_folder(config, tmp_path_factory):
    """The same corpus in many shards."""
    out = str(tmp_path_factory.mktemp("prepared") / "data")
    build(config, out, shard_tokens=700)
    return out


@pytest.fixture(scope="session")
def dataset(folder):
    return open_data(folder)


def domain_text(domain, number):
    return words(30, len(domain) * 1000 + number)


def build_domains(folder, tokenizer, **options):
    """Make a folder of three domains, each of several shards; returns it."""
    entries = {}
    for domain, count in DOMAINS.items():
        documents = [Document(domain_text(domain, number), f"{domain}/{number}", "made up") for number in range(count)]
        for split, some in write_shards(documents, folder, f"{domain}-", tokenizer, (0.1, 0.0), 700, domain).items():
            entries.setdefault(split, []).extend(some)
    manifest = assemble_manifest(entries, tokenizer=tokenizer, source={"name": "test"}, fractions=(0.1, 0.0), **options)
    save(tokenizer, os.path.join(folder, TOKENIZER))
    storage.write_atomic(os.path.join(folder, MANIFEST), json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def domains_folder(dataset, tmp_path_factory):
    return build_domains(str(tmp_path_factory.mktemp("domains")), dataset.tokenizer)
