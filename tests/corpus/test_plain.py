"""Text files, JSON lines and parquet become records, with what other corpora say of a document."""

import gzip
import json
import pathlib
import tracemalloc

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import plain
from lm.errors import ConfigError, DamagedFileError


def read(reader, path, **fields):
    """Return records and what was skipped (where, reason)."""
    skipped = []
    source = SourceConfig(paths=(str(path),), **fields)
    return list(reader(str(path), source, lambda *found: skipped.append(found))), skipped


def write_lines(path, *lines) -> str:
    content = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


C4 = {"text": "c", "timestamp": "2019-04-21T02:40:41Z", "url": "http://c4"}
DOLMA = {
    "id": "d1",
    "text": "d",
    "source": "common-crawl",
    "added": "2024-01-01",
    "created": "2020-03-29",
    "metadata": {"url": "http://dolma", "title": "T", "length": 5},
}
FINEWEB = {
    "text": "f",
    "id": "<urn:uuid:1>",
    "url": "http://fw",
    "date": "2021-01-01",
    "language": "en",
    "token_count": 1,
}
FIELDS = [
    ("http://c4", {"date": "2019-04-21T02:40:41Z"}),
    ("http://dolma", {"id": "d1", "source": "common-crawl", "date": "2020-03-29", "title": "T"}),
    ("http://fw", {"id": "<urn:uuid:1>", "date": "2021-01-01", "language": "en"}),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_keep_what_c4_dolma_and_fineweb_say_of_a_document(tmp_path, name):
    records, skipped = read(plain.read_jsonl, write_lines(tmp_path / name, C4, b"", DOLMA, FINEWEB))
    assert [(found.url, found.metadata) for found in records] == FIELDS
    assert [(found.id, found.text) for found in records] == [(f"{name}:1", "c"), (f"{name}:3", "d"), (f"{name}:4", "f")]
    assert skipped == []


def test_a_sources_license_is_that_of_documents_without_one(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "license": "MIT"})
    records, _ = read(plain.read_jsonl, path, license="CC0-1.0")
    assert [found.metadata["license"] for found in records] == ["CC0-1.0", "MIT"]


def test_a_bad_line_is_skipped_with_its_reason_and_the_rest_is_read(tmp_path):
    bad = {
        b'{"text": "a"': "not JSON",
        b'{"text": "\xff"}': "not UTF-8 at byte 10",
        b'["text"]': "not a JSON object but list",
        b'{"text": null}': "NoneType",
        b'{"text": 5}': "int",
        b'{"other": "a"}': 'no "text"',
        b'{"text": "  "}': "empty",
        b"[" * 100_000: "not JSON",
    }
    path = write_lines(tmp_path / "a.jsonl", {"text": "first"}, *bad, {"text": "last"})
    records, skipped = read(plain.read_jsonl, path)
    assert [found.text for found in records] == ["first", "last"]
    assert [where for where, _ in skipped] == [f"a.jsonl:{number}" for number in range(2, 2 + len(bad))]
    for (_, reason), expected in zip(skipped, bad.values(), strict=True):
        assert expected in reason


def test_a_line_beyond_the_limit_is_skipped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "MAX_LINE_BYTES", 1 << 20)
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(200):
            file.write(b"x" * (1 << 18))
        file.write(b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    records, skipped = read(plain.read_jsonl, tmp_path / "a.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found.text for found in records] == ["first", "last"]
    assert len(skipped) == 1 and "52,428,812 bytes" in skipped[0][1]
    assert peak < 8 << 20


@pytest.mark.parametrize("count", [3, 100, 500])
def test_a_text_key_that_is_nowhere_is_an_error_that_names_what_is_there(tmp_path, count):
    path = write_lines(tmp_path / "a.jsonl", *[{"content": "a", "url": "b"}] * count)
    with pytest.raises(ConfigError, match=r"text_key='text': none of the first \d+ lines .* content, url\.$"):
        read(plain.read_jsonl, path)
    assert len(read(plain.read_jsonl, path, text_key="content")[0]) == count


def test_a_file_of_no_json_at_all_is_damaged(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *[b"just a line of prose"] * 150)
    with pytest.raises(DamagedFileError, match="holds no JSON lines"):
        read(plain.read_jsonl, path)


def test_a_text_that_comes_late_is_found(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *[{"other": "a"}] * 99, {"text": "late"})
    records, skipped = read(plain.read_jsonl, path)
    assert (len(records), len(skipped)) == (1, 99)


def test_truncated_json_lines_yield_what_comes_before(tmp_path):
    content = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(50_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(content[:-30_000])
    records, source = [], SourceConfig(paths=(str(tmp_path / "a.jsonl.gz"),))
    with pytest.raises(DamagedFileError, match="truncated"):
        records.extend(plain.read_jsonl(str(tmp_path / "a.jsonl.gz"), source, lambda *_: None))
    assert 10_000 < len(records) < 50_000
    assert [found.text for found in records] == [str(number) for number in range(len(records))]


def test_a_text_file_is_one_document(tmp_path):
    for name, content in (("a.txt", b"\xef\xbb\xbfB\xc3\xa4r\r\n"), ("a.txt.gz", gzip.compress("Bär\r\n".encode()))):
        (tmp_path / name).write_bytes(content)
        (found,), skipped = read(plain.read_text, tmp_path / name)
        assert (found.id, found.text, skipped) == (name, "Bär\r\n", [])
    (tmp_path / "wide.txt").write_bytes("Bär".encode("utf-16"))
    assert read(plain.read_text, tmp_path / "wide.txt")[0][0].text == "Bär"


def test_a_text_file_that_cannot_be_used_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"B\xe4r")
    assert read(plain.read_text, tmp_path / "a.txt") == ([], [("a.txt", "not UTF-8 at byte 1")])
    monkeypatch.setattr(plain, "MAX_TEXT_BYTES", 2)
    assert "more than 2 bytes" in read(plain.read_text, tmp_path / "a.txt")[1][0][1]


@pytest.fixture
def write_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet as pq

    def write(rows, **options) -> str:
        pq.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "a.parquet"), **options)
        return str(tmp_path / "a.parquet")

    return write


def test_parquet_rows_keep_the_same_fields(write_parquet):
    keys = {key: None for row in (C4, DOLMA, FINEWEB) for key in row}
    path = write_parquet([keys | row for row in (C4, DOLMA, FINEWEB)])
    records, skipped = read(plain.read_parquet, path)
    assert [(found.url, found.metadata) for found in records] == FIELDS
    assert [(found.id, found.text) for found in records] == [
        ("a.parquet:1", "c"),
        ("a.parquet:2", "d"),
        ("a.parquet:3", "f"),
    ]
    assert skipped == []


def test_a_parquet_row_without_text_is_skipped_and_a_wrong_column_an_error(write_parquet):
    path = write_parquet([{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "c", "n": 3}])
    records, skipped = read(plain.read_parquet, path)
    assert [found.text for found in records] == ["a", "c"]
    assert [where for where, _ in skipped] == ["a.parquet:2"]
    with pytest.raises(ConfigError, match="has the columns text, n"):
        read(plain.read_parquet, path, text_key="content")
    with pytest.raises(ConfigError, match="holds int64, expected string"):
        read(plain.read_parquet, path, text_key="n")


def test_damaged_parquet_is_an_error_after_the_rows_before(write_parquet):
    path = write_parquet(
        [{"text": f"{number} " * 50} for number in range(4000)], row_group_size=500, compression="gzip"
    )
    content = bytearray(pathlib.Path(path).read_bytes())
    half = len(content) // 2
    content[half : half + 2000] = b"\xff" * 2000
    pathlib.Path(path).write_bytes(content)
    records = []
    with pytest.raises(DamagedFileError, match=r"damaged after row \d+"):
        records.extend(plain.read_parquet(path, SourceConfig(paths=(path,)), lambda *_: None))
    assert 500 <= len(records) < 4000
    pathlib.Path(path).write_bytes(content[:half])
    with pytest.raises(DamagedFileError, match="damaged after row 0"):
        read(plain.read_parquet, path)


@pytest.mark.real_data
def test_real_c4_and_dolma_files_are_read_whole(real_data):
    for name, count in (("c4-1000.jsonl", 1000), ("dolma-cc_en_head-0091.jsonl.gz", 10)):
        records, skipped = read(plain.read_jsonl, f"{real_data}/web/{name}")
        assert (len(records), skipped) == (count, [])
        assert all(found.url and found.metadata["date"] for found in records)
    records, skipped = read(plain.read_parquet, f"{real_data}/web/c4-validation-sample.parquet")
    assert len(records) == 40 and not skipped
