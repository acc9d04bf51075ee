"""Parquet: a document per row, and what is refused in one line."""

import os
import random
import sys

import pyarrow
import pytest
from pyarrow import parquet as files

from lm.config import DataConfig
from lm.data.dataset import open_data
from lm.data.prepare import cache_key, prepare
from lm.data.sources import parquet
from lm.errors import ConfigError, DamagedFileError, UsageError
from tests.commands.runs import finish, start

TEXTS = [f"text {number} — é" for number in range(1000)]


def read(path, **fields):
    return list(parquet(DataConfig(source="parquet", path=str(path), **fields)))


def write(path, texts=TEXTS, kind=None, **options):
    table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, kind or pyarrow.string())})
    files.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
)
def test_a_row_is_a_document_in_the_files_order(tmp_path, kind):
    path = write(tmp_path / "a.parquet", kind=kind, row_group_size=300)
    documents = read(path)
    assert [d.text for d in documents] == TEXTS
    assert [d.id for d in documents] == [f"a.parquet:{row}" for row in range(1, 1001)]


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.parquet", "a.parquet", "deep/c.parquet"):
        write(tmp_path / name, [name])
    (tmp_path / "notes.txt").write_text("not parquet")
    assert [d.id for d in read(tmp_path)] == ["a.parquet:1", "b.parquet:1", "deep/c.parquet:1"]
    assert [d.text for d in read(tmp_path / "*.parquet")] == ["a.parquet", "b.parquet"]


def test_only_the_texts_column_is_read(tmp_path):
    path = write(tmp_path / "a.parquet", compression="none", use_dictionary=False)
    chunk = files.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(OSError):
        files.read_table(path)
    assert [d.text for d in read(path)] == TEXTS


@pytest.mark.slow
def test_a_row_group_is_not_read_whole(tmp_path):
    """Of one row group of 200 MB less than a quarter is in memory at any time."""
    draw = random.Random(0)
    texts = [draw.randbytes(5000).hex() for _ in range(20_000)]
    path = write(tmp_path / "big.parquet", texts, compression="none", use_dictionary=False, row_group_size=20_000)
    assert files.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 190e6
    code = f"""
import pyarrow
from lm.config import DataConfig
from lm.data.sources import parquet
assert sum(len(d.text) for d in parquet(DataConfig(source="parquet", path={str(path)!r}))) == 200_000_000
peak = pyarrow.default_memory_pool().max_memory()
assert peak < 50e6, peak
"""
    exit_code, _, err = finish(start(code=code))
    assert exit_code == 0, err


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"config\.data\.text_key='body': .*a\.parquet\" has the columns id, text"):
        read(path, text_key="body")


def test_a_column_that_does_not_hold_text_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"config\.data\.text_key='id': .*holds int64, expected string"):
        read(path, text_key="id")


def test_a_row_without_text_is_refused_by_its_number(tmp_path):
    with pytest.raises(DamagedFileError, match=r"a\.parquet: row 3 has no text"):
        read(write(tmp_path / "a.parquet", ["one", "", None]))


@pytest.mark.parametrize("damage", ["truncated", "not parquet", "empty", "pages"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = write(tmp_path / "a.parquet", compression="zstd")
    content = bytearray(path.read_bytes())
    if damage == "pages":
        chunk = files.ParquetFile(path).metadata.row_group(0).column(1)
        content[chunk.data_page_offset + 40 : chunk.data_page_offset + chunk.total_compressed_size] = bytes(
            chunk.total_compressed_size - 40
        )
    damaged = {"truncated": content[:-100], "not parquet": b"PK" * 50, "empty": b"", "pages": content}
    path.write_bytes(damaged[damage])
    with pytest.raises(DamagedFileError, match=r"a\.parquet\" is damaged") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", ["fine", "caf\u00e9x"], compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9\xe9"))
    with pytest.raises(DamagedFileError, match=r"a\.parquet\" is damaged"):
        read(path)


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install -e .\.\[data\]"):
        read(tmp_path)


def test_what_is_read_decides_the_cache_key(tmp_path):
    config = DataConfig(source="parquet", path=str(write(tmp_path / "a.parquet")))
    keys = {cache_key(config)}
    for change in ({"text_key": "id"}, {"max_documents": 5}):
        keys.add(cache_key(DataConfig(**{**vars(config), **change})))
    write(tmp_path / "a.parquet", TEXTS[:-1])
    keys.add(cache_key(config))
    assert len(keys) == 4


@pytest.mark.real_data
def test_a_sample_of_c4_is_prepared(real_data, tmp_path):
    path = os.path.join(real_data, "web", "c4-validation-sample.parquet")
    config = DataConfig(source="parquet", path=path, tokenizer_vocab_size=512, validation_fraction=0.1, workers=1)
    table = files.read_table(path)
    assert [d.text for d in parquet(config)] == table["text"].to_pylist()
    dataset = open_data(prepare(config, cache_root=str(tmp_path)))
    counts = {split: dataset.counts(split) for split in ("train", "validation")}
    assert sum(count["documents"] for count in counts.values()) == table.num_rows
    assert sum(c["bytes"] for c in counts.values()) == sum(len(t.encode()) for t in table["text"].to_pylist())
