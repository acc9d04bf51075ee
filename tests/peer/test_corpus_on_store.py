"""A corpus read from an object store and built on one, the files between stages included."""

import pytest

from lm.__main__ import main
from lm.data.dataset import open_data
from lm.data.prepare import fetch_shards
from tests.corpus.small_corpus import write_corpus
from tests.peer.test_object_store import endpoint, store

__all__ = ["endpoint", "store"]
pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_a_corpus_on_a_store_is_the_one_on_a_disk(store, tmp_path, monkeypatch, capsys):
    environment, client = store
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = write_corpus(tmp_path / "raw")
    for path in (tmp_path / "raw" / "web").iterdir():
        client.upload_file(str(path), "bucket", f"raw/{path.name}")
    text = config.read_text().replace(f"{tmp_path}/raw/web", "s3://bucket/raw/*.jsonl")
    config.write_text(text)
    build = ["data", "build", "--config", str(config), "--workers", "2", "--json", "--out"]
    assert main([*build, str(tmp_path / "out")]) == 0
    assert main([*build, "s3://bucket/corpus"]) == 0
    here, there = open_data(str(tmp_path / "out")), open_data(fetch_shards("s3://bucket/corpus"))
    assert here.hash == there.hash
    assert b"<!DOCTYPE html>" in client.get_object(Bucket="bucket", Key="corpus/card.html")["Body"].read()
    capsys.readouterr()
    assert main(["data", "card", "s3://bucket/corpus"]) == 0
    assert "4 domains" in capsys.readouterr().out
    client.put_object(Bucket="bucket", Key="other/notes.txt", Body=b"mine")
    assert main([*build, "s3://bucket/other"]) == 2
    assert "notes.txt" in capsys.readouterr().err
