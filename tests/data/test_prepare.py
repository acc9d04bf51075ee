"""Preparing: cached by content, whole or not at all, safe beside other processes."""

import dataclasses
import errno
import os
import shutil
import sys
import threading
import types

import pytest

from lm.config import DataConfig
from lm.data.build import build
from lm.data.dataset import open_data
from lm.data.prepare import cache_key, prepare
from lm.data.shards import ShardWriter
from lm.data.sources import Document
from lm.errors import DamagedFileError, LmError, UsageError


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def test_the_second_call_builds_nothing(config, cache, monkeypatch):
    first = prepare(config, cache_root=cache)
    monkeypatch.setattr("lm.data.prepare.build_or_keep", None)
    assert prepare(config, cache_root=cache) == first


def test_the_same_text_elsewhere_has_the_same_hash(config, folder, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "moved")
    build(dataclasses.replace(config, path=str(moved)), str(tmp_path / "out"))
    assert open_data(str(tmp_path / "out")).hash == open_data(folder).hash


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_vocab_size": 300},
        {"tokenizer_pattern": "gpt2"},
        {"tokenizer": "gpt2"},
        {"validation_fraction": 0.3},
        {"test_fraction": 0.0},
    ],
)
def test_what_changes_the_data_changes_the_key(config, change):
    assert cache_key(dataclasses.replace(config, **change)) != cache_key(config)


def test_what_does_not_change_the_data_keeps_the_key(config):
    other = dataclasses.replace(config, sequence_length=7, batch_size=3, packing="best_fit", workers=5, prefetch=9)
    assert cache_key(other) == cache_key(config)


def test_a_changed_input_changes_the_key(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    config = DataConfig(source="text", path=str(tmp_path))
    before = cache_key(config)
    (tmp_path / "a.txt").write_text("other")
    changed = cache_key(config)
    (tmp_path / "b.txt").write_text("more")
    assert len({before, changed, cache_key(config)}) == 3


def test_an_own_source_is_keyed_by_its_text(monkeypatch):
    documents = [Document("one", "1"), Document("two", "2")]
    monkeypatch.setitem(sys.modules, "my_sources", types.SimpleNamespace(mine=lambda config: iter(documents)))
    config = DataConfig(source="my_sources:mine")
    before = cache_key(config)
    documents[1] = Document("three", "2")
    assert cache_key(config) != before


def test_an_interrupted_build_leaves_nothing(config, cache, monkeypatch):
    def interrupted(self, document, origin=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, cache_root=cache)
    assert os.listdir(os.path.join(cache, "data")) == []


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(config, cache, monkeypatch):
    def full(self, document, origin=None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(LmError, match="No space left"):
        prepare(config, cache_root=cache)
    assert os.listdir(os.path.join(cache, "data")) == []


def test_two_builders_at_once_agree(config, cache):
    folders, barrier = [], threading.Barrier(2)

    def work():
        barrier.wait()
        folders.append(prepare(config, cache_root=cache))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    assert open_data(folders[0]).shards("train")
    assert os.listdir(os.path.join(cache, "data")) == [os.path.basename(folders[0])]


def test_what_killed_builds_left_is_removed_after_a_day(config, cache):
    parent = os.path.join(cache, "data")
    for name, age in (("old", 2e5), ("new", 0)):
        path = os.path.join(parent, f".{name}.tmp")
        os.makedirs(path)
        os.utime(path, (os.path.getmtime(path) - age,) * 2)
    prepare(config, cache_root=cache)
    assert [name for name in os.listdir(parent) if name.endswith(".tmp")] == [".new.tmp"]


def test_building_into_a_folder_in_use_is_refused(config, tmp_path):
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        build(config, str(tmp_path))


def test_a_missing_path_is_a_usage_error(cache, tmp_path):
    with pytest.raises(UsageError, match="no files at"):
        prepare(DataConfig(source="text", path=str(tmp_path / "none")), cache_root=cache)


def test_a_corpus_without_text_is_a_usage_error(cache, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="no text"):
        prepare(DataConfig(source="text", path=str(tmp_path / "empty.txt"), tokenizer_vocab_size=257), cache_root=cache)


def test_too_little_text_for_the_vocabulary_is_a_usage_error(cache, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UsageError, match="merges"):
        prepare(DataConfig(source="text", path=str(tmp_path / "short.txt")), cache_root=cache)


def test_a_damaged_tokenizer_file_is_refused(config, folder, cache, tmp_path):
    for name in ("tokenizer.tiktoken", "tokenizer.json"):
        shutil.copy(os.path.join(folder, name), tmp_path)
    path = tmp_path / "tokenizer.tiktoken"
    with_file = dataclasses.replace(config, tokenizer=str(path))
    assert open_data(prepare(with_file, cache_root=cache)).vocab_size == 320
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFileError):
        prepare(with_file, cache_root=cache)


def test_built_shards_are_a_source_themselves(config, folder, tmp_path):
    shards = dataclasses.replace(config, source="shards", path=folder)
    assert prepare(shards, cache_root=str(tmp_path)) == folder
    with pytest.raises(UsageError, match="no prepared data"):
        prepare(dataclasses.replace(shards, path=str(tmp_path)))


@pytest.mark.real_data
def test_tiny_shakespeare_is_split_by_position(cache, real_data):
    path = os.path.join(real_data, "text", "tinyshakespeare.txt")
    config = DataConfig(source="text", path=path, tokenizer_vocab_size=2048, test_fraction=0.1)
    dataset = open_data(prepare(config, cache_root=cache))
    with open(path, "rb") as file:
        content = file.read()
    cut = int(0.9 * len(content))
    shard = dataset.shards("test")[0]
    assert dataset.tokenizer.decode_bytes(shard.tokens[1:-1]) == content[cut:]
    assert dataset.counts("train")["bytes"] + dataset.counts("validation")["bytes"] == cut
