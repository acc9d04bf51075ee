"""The source `download`: names and URLs, their formats, and what is prepared from them."""

import dataclasses
import gzip
import hashlib
import io
import json
import zipfile

import pytest

from lm.config import DataConfig
from lm.data.card import card, card_text
from lm.data.dataset import open_data
from lm.data.download import RemoteFile
from lm.data.prepare import cache_key, prepare
from lm.data.sources import documents, named
from lm.data.sources.named import NAMED, Corpus, corpus_of
from lm.errors import ConfigError, DamagedFileError, UsageError
from tests.data.conftest import words
from tests.data.http import Step

STORIES = [f"Story {number}. " + words(30, number) for number in range(40)]
JSONL = "".join(json.dumps({"text": story}) + "\n" for story in STORIES).encode()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def config(site, tmp_path):
    """A config for a file of the site."""

    def made(name, content=None, **fields):
        if content is not None:
            site.files["/" + name] = content
        base = DataConfig(source="download", path=f"{site.url}/{name}", cache=str(tmp_path / "cache"), workers=1)
        return dataclasses.replace(base, tokenizer_vocab_size=300, validation_fraction=0.2, **fields)

    return made


@pytest.fixture
def stories(site, monkeypatch):
    """A named corpus on the site."""
    content = "\n<|endoftext|>\n".join(STORIES).encode()
    site.files["/stories.txt"] = content
    file = RemoteFile(site.url + "/stories.txt", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(NAMED, "stories", Corpus((file,), "separated", "CC0", "test"))


def test_every_name_of_the_table_is_complete():
    for name, corpus in NAMED.items():
        assert corpus.format in named._READERS or name == "simplewiki_dump"
        assert corpus.license and corpus.about
        for file in corpus.files:
            assert file.url.startswith("https://")
            assert (file.sha256 is None) == (file.bytes is None) == (name == "simplewiki_dump")
            assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
        assert len({file.name for file in corpus.files}) == len(corpus.files)


@pytest.mark.parametrize(
    ("name", "content", "texts", "ids"),
    [
        ("a.txt", "one é\n".encode(), ["one é\n"], ["a.txt"]),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"], ["a.jsonl:1", "a.jsonl:2"]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n', mtime=0), ["one"], ["a.jsonl.gz:1"]),
        ("a.zip", zipped(b=b"two", a=b"one"), ["one", "two"], ["a", "b"]),
    ],
)
def test_a_urls_format_is_told_by_its_suffix(config, name, content, texts, ids):
    found = list(documents(config(name, content)))
    assert [d.text for d in found] == texts
    assert [d.id for d in found] == ids


def test_a_parquet_url_is_read(config):
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": STORIES}), buffer)
    assert [d.text for d in documents(config("a.parquet", buffer.getvalue()))] == STORIES


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_stories_are_cut_at_their_separator_wherever_pieces_end(config, stories, site, monkeypatch, chunk):
    monkeypatch.setattr(named, "_CHUNK", chunk)
    content = "  One é.\n<|endoftext|>\n\n<|endoftext|>Two\n<|endoftext|>\n".encode()
    site.files["/stories.txt"] = content
    file = RemoteFile(site.url + "/stories.txt")
    monkeypatch.setitem(NAMED, "stories", Corpus((file,), "separated"))
    found = list(documents(dataclasses.replace(config("x"), path="stories")))
    assert [(d.text, d.id) for d in found] == [("One é.", "stories.txt:1"), ("Two", "stories.txt:3")]


def test_no_more_than_max_documents_are_read(config):
    found = list(documents(config("a.jsonl", JSONL, max_documents=3)))
    assert [d.text for d in found] == STORIES[:3]


@pytest.mark.parametrize("content", [b"PK\x03\x04", zipped(a=b"x" * 10_000)[:-200], zipped(a=b"caf\xe9")])
def test_a_damaged_zip_is_refused_in_one_line(config, content):
    with pytest.raises(DamagedFileError, match=r"a\.zip") as error:
        list(documents(config("a.zip", content)))
    assert "\n" not in str(error.value)


def test_stories_that_are_not_utf8_are_refused(config, site, monkeypatch):
    site.files["/stories.txt"] = b"one<|endoftext|>caf\xe9<|endoftext|>"
    monkeypatch.setitem(NAMED, "stories", Corpus((RemoteFile(site.url + "/stories.txt"),), "separated"))
    with pytest.raises(DamagedFileError, match=r"stories\.txt"):
        list(documents(dataclasses.replace(config("x"), path="stories")))


@pytest.mark.parametrize(
    ("path", "sha256", "words"),
    [
        ("enwik", None, ["no corpus 'enwik'", 'Did you mean "enwik8"?', "tinystories"]),
        ("ftp://x.org/a.txt", None, ["http(s) URL"]),
        ("https://[x/a.txt", None, ["is not a URL"]),
        ("https://x.org/a.tar", None, ["'https://x.org/a.tar'", ".jsonl.gz"]),
        ("https://x.org/a.txt", "12", ["sha256 '12'", "64 hexadecimal digits"]),
        ("enwik8", "a" * 64, ["has its own"]),
    ],
)
def test_a_name_or_url_that_is_wrong_is_refused(path, sha256, words):
    with pytest.raises(ConfigError) as error:
        corpus_of(path, sha256)
    assert all(word in str(error.value) for word in words)


def test_a_dump_that_no_source_can_read_is_refused_before_it_is_downloaded(config):
    for use in (cache_key, lambda config: list(documents(config))):
        with pytest.raises(ConfigError, match="MediaWiki markup.*wikipedia_simple.*lm data download simplewiki_dump"):
            use(dataclasses.replace(config("x"), path="simplewiki_dump"))


def test_what_is_prepared_names_url_checksum_and_license(config, stories, site):
    dataset = open_data(prepare(dataclasses.replace(config("x"), path="stories")))
    assert sum(dataset.counts(split)["documents"] for split in dataset.splits) == len(STORIES)
    source = card(dataset)["source"]
    assert (source["name"], source["path"], source["license"]) == ("download", "stories", "CC0")
    digest = hashlib.sha256(site.files["/stories.txt"]).hexdigest()
    assert [(f["url"], f["sha256"], f["checksum"]) for f in source["files"]] == [
        (site.url + "/stories.txt", digest, "given")
    ]
    text = card_text(card(dataset))
    assert f"{site.url}/stories.txt" in text and digest in text and "CC0" in text


def test_the_card_says_that_a_checksum_is_that_of_the_first_download(config):
    dataset = open_data(prepare(config("a.jsonl", JSONL)))
    assert "recorded at the first download" in card_text(card(dataset))
    assert hashlib.sha256(JSONL).hexdigest() in card_text(card(dataset))


def test_prepared_data_needs_neither_network_nor_the_downloaded_file(config, stories, site, tmp_path):
    named_config = dataclasses.replace(config("x"), path="stories")
    folder = prepare(named_config)
    requests = len(site.seen)
    (tmp_path / "cache" / "downloads" / "stories" / "stories.txt").unlink()
    assert prepare(named_config) == folder
    assert len(site.seen) == requests == 1


def test_the_content_decides_the_cache_key_not_the_url(config):
    keys = {cache_key(config("a.jsonl", JSONL)), cache_key(config("b.jsonl", JSONL))}
    assert len(keys) == 1
    keys |= {cache_key(config("c.jsonl", JSONL + b"\n")), cache_key(config("a.jsonl", text_key="body"))}
    assert len(keys) == 3


def test_a_file_that_changed_in_the_cache_is_not_trained_on(config, tmp_path):
    prepared = prepare(config("a.jsonl", JSONL))
    (path,) = (tmp_path / "cache" / "downloads").glob("*/a.jsonl")
    path.write_bytes(JSONL.replace(b"Story 1.", b"Story 9."))
    with pytest.raises(DamagedFileError, match="set aside"):
        prepare(config("a.jsonl", tokenizer="train", tokenizer_pattern="gpt2"))
    assert prepare(config("a.jsonl")) == prepared


def test_a_dropped_connection_in_the_middle_of_preparing_resumes(config, site, monkeypatch):
    from lm.data import download

    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    site.plan = [Step(drop_at=1000)]
    assert open_data(prepare(config("a.jsonl", JSONL))).counts("train")["documents"] > 20
    assert sum(seen.sent for seen in site.seen) == len(JSONL)


def test_a_url_with_a_wrong_sha256_is_refused(config):
    with pytest.raises(DamagedFileError, match="expected aaaa"):
        prepare(config("a.jsonl", JSONL, sha256="a" * 64))


def test_no_network_is_a_usage_error(config, site):
    site.shutdown()
    site.server_close()
    with pytest.raises(UsageError, match="Check the network"):
        prepare(config("a.jsonl"))
