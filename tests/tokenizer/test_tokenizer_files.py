"""Tokenizer files: what is refused, and with which exit code."""

import hashlib
import os

import pytest

from lm.errors import DamagedFileError, UsageError
from lm.tokenizer import END_OF_TEXT, files, load_tokenizer, save


@pytest.fixture
def saved(tokenizer, tmp_path):
    path = str(tmp_path / "own.tiktoken")
    save(tokenizer, path)
    return path


@pytest.fixture
def official(monkeypatch, tokenizer, tmp_path):
    """A stand-in for OpenAI's server: one encoding, behind a file URL."""
    server = tmp_path / "server"
    server.mkdir()
    (server / "tiny.tiktoken").write_bytes(tokenizer.ranks_file)
    digest = hashlib.sha256(tokenizer.ranks_file).hexdigest()
    entry = files.Official("tiny.tiktoken", digest, "gpt4", {END_OF_TEXT: tokenizer.eot_id})
    monkeypatch.setattr(files, "OFFICIAL", {"tiny": entry})
    monkeypatch.setattr(files, "_URL", server.as_uri() + "/")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    return server / "tiny.tiktoken"


def test_a_saved_tokenizer_loads_as_the_same_one(tokenizer, saved):
    loaded = load_tokenizer(saved)
    assert (loaded.sha256, loaded.name, loaded.training) == (tokenizer.sha256, tokenizer.name, tokenizer.training)


def test_a_truncated_tokenizer_is_refused(saved):
    os.truncate(saved, os.path.getsize(saved) - 10)
    with pytest.raises(DamagedFileError, match="sha256"):
        load_tokenizer(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "lm-tokenizer", "version": 1}', '{"format": "x"}'])
def test_a_damaged_sidecar_is_refused(saved, text):
    with open(saved.replace(".tiktoken", ".json"), "w") as file:
        file.write(text)
    with pytest.raises(DamagedFileError):
        load_tokenizer(saved)


def test_a_sidecar_with_another_pattern_is_refused(saved):
    sidecar = saved.replace(".tiktoken", ".json")
    with open(sidecar) as file:
        content = file.read()
    with open(sidecar, "w") as file:
        file.write(content.replace("{1,3}", "{1,2}"))
    with pytest.raises(DamagedFileError, match="changed"):
        load_tokenizer(saved)


def test_another_sha256_than_the_expected_one_is_refused(saved):
    with pytest.raises(DamagedFileError, match="sha256"):
        load_tokenizer(saved, sha256="0" * 64)


def test_an_unknown_name_suggests_the_nearest(saved):
    with pytest.raises(UsageError, match="cl100k_base"):
        load_tokenizer("cl100k_bas")


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no tokenizer"):
        load_tokenizer(str(tmp_path / "none.tiktoken"))


def test_an_unknown_file_without_its_sidecar_is_a_usage_error(saved):
    os.remove(saved.replace(".tiktoken", ".json"))
    with pytest.raises(UsageError, match=r"own\.json"):
        load_tokenizer(saved)


def test_an_official_file_is_recognised_by_its_hash(official, tokenizer, tmp_path):
    renamed = tmp_path / "renamed.tiktoken"
    renamed.write_bytes(official.read_bytes())
    assert load_tokenizer(str(renamed)).sha256 == tokenizer.sha256


def test_a_truncated_official_file_is_refused(official):
    official.write_bytes(official.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match="sha256"):
        load_tokenizer(str(official))


def test_a_named_tokenizer_is_downloaded_once(official, tokenizer, tmp_path):
    cache = str(tmp_path / "cache")
    assert load_tokenizer("tiny", cache=cache).sha256 == tokenizer.sha256
    official.unlink()
    assert load_tokenizer("tiny", cache=cache).sha256 == tokenizer.sha256


def test_without_a_network_the_error_says_what_to_do(official, tmp_path):
    official.unlink()
    with pytest.raises(UsageError, match="TIKTOKEN_CACHE_DIR"):
        load_tokenizer("tiny", cache=str(tmp_path / "cache"))


def test_a_damaged_download_is_refused_and_not_kept(official, tmp_path):
    official.write_bytes(b"not the file")
    with pytest.raises(DamagedFileError):
        load_tokenizer("tiny", cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_tiktokens_cache_is_read_and_a_damaged_file_there_is_never_deleted(official, tokenizer, tmp_path, monkeypatch):
    name = hashlib.sha1(official.as_uri().encode()).hexdigest()
    official.rename(tmp_path / name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert load_tokenizer("tiny").sha256 == tokenizer.sha256
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(DamagedFileError):
        load_tokenizer("tiny")
    assert (tmp_path / name).read_bytes() == b"damaged"


@pytest.mark.real_data
@pytest.mark.parametrize("name", list(files.OFFICIAL))
def test_openai_encodings_give_tiktokens_ids(name, monkeypatch, real_data):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", os.path.join(real_data, "tiktoken_cache"))
    text = "don't DON'T 1234567 \r\n\r\n  x日本語\u3000é\t//\n/ " + END_OF_TEXT
    ours, theirs = load_tokenizer(name), tiktoken.get_encoding(name)
    assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
    assert (ours.vocab_size, ours.eot_id) == (theirs.n_vocab, theirs.eot_token)
