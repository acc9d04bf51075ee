"""Small corpora and prepared folders."""

import random

import pytest

from lm.config import DataConfig
from lm.data.build import build
from lm.data.dataset import open_data


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
