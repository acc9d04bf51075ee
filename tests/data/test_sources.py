"""Sources: what they yield, and what is refused with which exit code."""

import dataclasses
import gzip
import json
import sys
import types

import pytest

from lm.config import DataConfig
from lm.data.sources import Document, find_source, jsonl, stdlib_files, text
from lm.errors import ConfigError, DamagedFileError, UsageError


def letters(config):
    """An own source: one document per letter."""
    for letter in "abc":
        yield Document(letter * 10, letter)


def read(source, path, **fields):
    return list(source(DataConfig(source="text", path=str(path), **fields)))


def test_stdlib_is_pythons_source_without_its_tests():
    files = stdlib_files(DataConfig())
    assert files == sorted(files)
    assert any(name.endswith("argparse.py") for name in files)
    assert not any("/test/" in name or "/tests/" in name or "site-packages" in name for name in files)


def test_text_reads_a_file_a_folder_and_a_glob(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, content in {"b.txt": "B", "a.txt": "A", "deep/c.md": "C", ".hidden": "no"}.items():
        (tmp_path / name).write_text(content)
    assert [(d.id, d.text) for d in read(text, tmp_path)] == [("a.txt", "A"), ("b.txt", "B"), ("deep/c.md", "C")]
    assert [d.text for d in read(text, tmp_path / "*.txt")] == ["A", "B"]
    assert [d.text for d in read(text, tmp_path / "**/*.md")] == ["C"]
    assert [d.text for d in read(text, tmp_path / "b.txt")] == ["B"]


def test_text_strips_the_byte_order_mark_and_keeps_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read(text, tmp_path / "a.txt")[0].text == "one\r\ntwo\n"


def test_text_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DamagedFileError, match=r"latin\.txt"):
        read(text, tmp_path)


@pytest.mark.parametrize("name", ["none.txt", "*.nothing", "empty"])
def test_a_path_with_nothing_there_is_a_usage_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no files at"):
        read(text, tmp_path / name)


def test_jsonl_reads_plain_and_gzipped_lines(tmp_path):
    lines = [json.dumps({"body": f"text {number}"}) for number in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:2]) + "\n\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[2:]))
    (tmp_path / "ignored.txt").write_text("not JSON")
    documents = read(jsonl, tmp_path, text_key="body")
    assert [d.text for d in documents] == [f"text {number}" for number in range(4)]
    assert [d.id for d in documents] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl.gz:1", "b.jsonl.gz:2"]


@pytest.mark.parametrize("line", ["{", '{"other": "x"}', '{"text": 3}', '"text"', "[1]"])
def test_a_bad_json_line_is_refused_by_file_and_line(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DamagedFileError, match=r"a\.jsonl:2 "):
        read(jsonl, tmp_path / "a.jsonl")


def test_a_truncated_gzip_file_is_refused(tmp_path):
    whole = gzip.compress(b'{"text": "fine"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DamagedFileError, match="damaged"):
        read(jsonl, tmp_path / "a.jsonl.gz")


def test_a_source_of_ones_own_is_found_by_its_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_sources", types.SimpleNamespace(letters=letters))
    assert [d.text[0] for d in find_source("my_sources:letters")(DataConfig())] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["stdlibs", "no.such.module:Name", "os:no_such_name", "os:sep"])
def test_an_unknown_source_is_a_config_error(name):
    with pytest.raises(ConfigError):
        find_source(name)


def test_documents_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Document("a", "b").text = "c"
