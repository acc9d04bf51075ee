"""Shards, manifest and tokenizer that are not what was built: training and evaluation say so."""

import json
import os
import shutil

import pytest

from lm.data import dataset
from tests.commands.runs import records

pytestmark = pytest.mark.slow  # each trains a model of its own


@pytest.fixture
def data(finished, config, tmp_path, monkeypatch):
    """A copy of the prepared data, which this process uses; to be damaged."""
    from lm.commands.common import load_config
    from lm.data.prepare import prepare
    from lm.resolve import resolve

    section = resolve(load_config(str(config))).data
    shutil.copytree(prepare(section), prepare_at(section, tmp_path / "cache"))
    (tmp_path / "cache" / "xla").symlink_to(os.path.join(os.environ["LM_CACHE"], "xla"))  # compiled programs
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    return prepare_at(section, tmp_path / "cache")


def prepare_at(section, cache):
    from lm.data.prepare import cache_key

    return cache / "data" / cache_key(section)[:24]


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def replace(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FLIPS = {
    "train-00000.bin": lambda path: flip(path, 2000),
    "train-00000.ends": lambda path: flip(path, 0),
    "validation-00000.bin": lambda path: flip(path, 1500),
    "manifest.json": lambda path: replace(path, '"vocab_size": 300', '"vocab_size": 308'),
    "tokenizer.json": lambda path: replace(path, "p{L}", "p{N}"),
    "tokenizer.tiktoken": lambda path: flip(path, 100),
}


@pytest.mark.parametrize("name", FLIPS)
def test_training_refuses_damaged_data_in_one_line_that_names_the_file(train, tmp_path, data, name):
    FLIPS[name](data / name)
    done = train(tmp_path / "run")
    assert done.code == 1 and "Traceback" not in done.err, done.err
    stem = "tokenizer" if name == "manifest.json" else name.removesuffix(".ends")  # what does not fit it
    assert done.err.splitlines()[-1].startswith("lm: ") and stem in done.err.splitlines()[-1]
    assert records(tmp_path / "run") == []


@pytest.mark.parametrize("split", ["validation", "train"])
def test_evaluation_refuses_a_damaged_split(lm, finished, data, split):
    flip(data / f"{split}-00000.bin", 1500)
    assert f"{split}-00000.bin" in lm("eval", f"--checkpoint={finished}", f"--data={split}").refusal(1)
    other = {"train": "validation", "validation": "train"}[split]
    done = lm("eval", f"--checkpoint={finished}", f"--data={other}", "--max-tokens=64", "--json")
    assert done.code == 0 and json.loads(done.out)["tokens"] >= 64


def test_a_large_split_is_hashed_while_it_is_used_and_damage_ends_the_run(
    train, lm, finished, tmp_path, data, monkeypatch
):
    monkeypatch.setattr(dataset, "AT_ONCE", 0)
    assert train(tmp_path / "whole").code == 0
    flip(data / "train-00000.bin", 2000)
    done = train(tmp_path / "run")
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("lm: ") and "train-00000.bin" in done.err.splitlines()[-1]
    flip(data / "validation-00000.bin", 1500)
    assert "validation-00000.bin" in lm("eval", f"--checkpoint={finished}").refusal(1)


def test_hashing_can_be_turned_off(train, tmp_path, data):
    flip(data / "train-00000.bin", 2000)
    assert train(tmp_path / "run", "--config.data.verify=False").code == 0
