"""Shards and manifests: what was built is what is read, and damage is refused."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from lm.data.build import build, make_tokenizer
from lm.data.dataset import open_data
from lm.data.shards import Shard, ShardWriter, check_file, ends_path, token_dtype
from lm.data.sources import text
from lm.data.splits import split_of
from lm.errors import DamagedFileError, UsageError
from lm.tokenizer import save


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the prepared folder, to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def documents_of(dataset, split):
    tokenizer = dataset.tokenizer
    for shard in dataset.shards(split):
        for start, length in zip(shard.starts, shard.lengths, strict=True):
            tokens = shard.tokens[start : start + length]
            assert tokens[0] == tokenizer.eot_id
            yield tokenizer.decode(tokens[1:])


@pytest.mark.parametrize("which", ["folder", "sharded_folder"])
def test_shards_hold_every_document_once_in_its_split(which, config, request):
    dataset = open_data(request.getfixturevalue(which))
    for split in ("train", "validation", "test"):
        expected = [d.text for d in text(config) if split_of(d.text, 0.2, 0.1) == split]
        assert list(documents_of(dataset, split)) == expected
        counts = dataset.counts(split)
        assert counts["documents"] == len(expected)
        assert counts["bytes"] == sum(len(text.encode()) for text in expected)
        assert counts["tokens"] == sum(shard.num_tokens for shard in dataset.shards(split))


def test_many_shards_hold_the_same_tokens_as_one(folder, sharded_folder):
    one, many = open_data(folder).shards("train"), open_data(sharded_folder).shards("train")
    assert len(many) > 3
    joined = np.concatenate([shard.tokens[:-1] for shard in many])
    np.testing.assert_array_equal(joined, one[0].tokens[:-1])


def test_a_shard_ends_with_the_separator_so_that_every_token_has_a_next_one(dataset):
    shard = dataset.shards("train")[0]
    assert shard.tokens[-1] == dataset.tokenizer.eot_id
    assert shard.ends[-1] == len(shard.tokens) - 1


def test_the_header_is_that_of_llm_c(folder):
    header = np.fromfile(os.path.join(folder, "train-00000.bin"), np.int32, 256)
    assert header[:2].tolist() == [20240520, 1]
    assert header[2] == (os.path.getsize(os.path.join(folder, "train-00000.bin")) - 1024) // 2


def test_large_vocabularies_are_stored_in_32_bits(tmp_path):
    assert (token_dtype(65536), token_dtype(65537)) == (np.uint16, np.uint32)
    writer = ShardWriter(str(tmp_path), "train", np.uint32, 100_000, np.ones(100_001, np.int32), 10**6)
    document = np.array([100_000, 70_000, 5], np.uint32)
    writer.add(document)
    entry = writer.close()[0]
    path = str(tmp_path / entry["file"])
    check_file(path, entry["sha256"])
    check_file(ends_path(path), entry["ends_sha256"])
    shard = Shard.open(path, entry)
    assert shard.tokens.tolist() == [100_000, 70_000, 5, 100_000]
    assert np.fromfile(tmp_path / entry["file"], np.int32, 2).tolist() == [20240801, 7]


def test_the_trained_tokenizer_has_seen_the_train_split_alone(config):
    train = sum(len(d.text) for d in text(config) if split_of(d.text, 0.2, 0.1) == "train")
    assert make_tokenizer(config).training["characters"] == train


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.ends"])
@pytest.mark.parametrize("size", [0, 100, -2])
def test_a_truncated_shard_is_refused(copy, name, size):
    path = copy / name
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(DamagedFileError, match=r"train-00000"):
        open_data(str(copy), verify=False).shards("train")


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.ends"])
def test_a_shard_whose_bytes_changed_is_refused(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"train-00000"):
        open_data(str(copy)).shards("train")
    assert open_data(str(copy)).shards("validation")  # the others are as they were


def test_a_missing_shard_is_refused(copy):
    os.remove(copy / "train-00000.bin")
    with pytest.raises(UsageError, match="no shard"):
        open_data(str(copy)).shards("train")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": "other", "version": 1}'])
def test_a_damaged_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(DamagedFileError, match="manifest"):
        open_data(str(copy))


def test_a_manifest_that_was_edited_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["tokens"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFileError, match="hash"):
        open_data(str(copy))


def test_another_tokenizer_in_the_folder_is_refused(copy, config):
    save(make_tokenizer(dataclasses.replace(config, tokenizer_vocab_size=300)), str(copy / "tokenizer.tiktoken"))
    with pytest.raises(DamagedFileError, match="not the tokenizer"):
        open_data(str(copy)).tokenizer  # noqa: B018


def test_a_folder_without_a_manifest_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no prepared data"):
        open_data(str(tmp_path / "none"))


def test_an_empty_split_is_an_error_only_when_asked_for(config, tmp_path):
    build(dataclasses.replace(config, test_fraction=0.0), str(tmp_path / "data"))
    dataset = open_data(str(tmp_path / "data"))
    assert dataset.splits == ["train", "validation"]
    with pytest.raises(UsageError, match=r"no test documents.*test_fraction"):
        dataset.shards("test")
