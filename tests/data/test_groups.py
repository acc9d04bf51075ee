"""Shards written group by group, as a pipeline's tasks do, and the manifest that joins them."""

import json
import os

import pytest

from lm import storage
from lm.data.build import assemble_manifest, write_shards
from lm.data.dataset import MANIFEST, TOKENIZER, open_data, read_manifest
from lm.data.document import Document
from lm.data.loader import Loader
from lm.data.prepare import fetch_shards
from lm.data.provenance import read_origins
from lm.errors import DamagedFileError, LmError
from lm.tokenizer import save
from tests.data.conftest import words

FRACTIONS = (0.2, 0.1)
GROUPS = {"wiki-0": "wiki", "wiki-1": "wiki", "books-0": "books"}


def documents_of(prefix):
    return [
        Document(words(5 + number, hash_of(prefix) + number), f"{prefix}/{number}", "source", f"http://x/{number}", 7)
        for number in range(30)
    ]


def hash_of(text):
    return sum(text.encode())


def write(folder, tokenizer, prefixes=tuple(GROUPS), **options):
    entries = {}
    for prefix in prefixes:
        found = write_shards(
            documents_of(prefix), folder, f"{prefix}-", tokenizer, FRACTIONS, 400, GROUPS[prefix], **options
        )
        for split, some in found.items():
            entries.setdefault(split, []).extend(some)
    return entries


@pytest.fixture
def tokenizer(dataset):
    return dataset.tokenizer


def publish(folder, entries, tokenizer, **options):
    manifest = assemble_manifest(
        entries, tokenizer=tokenizer, source={"name": "corpus"}, fractions=FRACTIONS, **options
    )
    storage.write_atomic(storage.join(folder, MANIFEST), json.dumps(manifest))
    return manifest


def test_groups_become_one_data_set_with_domains(tokenizer, tmp_path):
    folder = str(tmp_path)
    publish(folder, write(folder, tokenizer), tokenizer)
    save(tokenizer, os.path.join(folder, TOKENIZER))
    opened = open_data(folder)
    assert sum(opened.counts(split)["documents"] for split in opened.splits) == 90
    shards = opened.counts("train")["shards"]
    assert len(shards) > len(GROUPS)  # more than one per group
    assert [shard["domain"] for shard in shards] == [GROUPS[shard["file"][:-16]] for shard in shards]
    assert Loader(opened, sequence_length=16, batch_size=2).batch(0)["weights_BT"].any()


def test_the_order_of_writing_changes_no_file(tokenizer, tmp_path):
    for name, order in (("one", list(GROUPS)), ("other", list(GROUPS)[::-1])):
        (tmp_path / name).mkdir()
        write(str(tmp_path / name), tokenizer, order)
    for name in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_group_that_was_broken_off_is_written_over(tokenizer, tmp_path):
    entries = write(str(tmp_path), tokenizer)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = iter([*documents_of("wiki-0")[:20], None])
    with pytest.raises(AttributeError):
        write_shards(broken, str(tmp_path), "wiki-0-", tokenizer, FRACTIONS, 400, "wiki")
    assert write(str(tmp_path), tokenizer) == entries
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_document_alone_in_its_group_is_not_cut(tokenizer, tmp_path):
    entries = write_shards(documents_of("wiki-0")[:1], str(tmp_path), "", tokenizer, (0.4, 0.4))
    assert sorted(len(some) for some in entries.values()) == [0, 0, 1]


def test_sidecars_say_where_documents_come_from_and_are_no_part_of_the_identity(tokenizer, tmp_path):
    entries = write(str(tmp_path), tokenizer)
    (shard,) = [e for e in entries["train"] if e["file"] == "wiki-0-train-00000.bin"]
    origins = read_origins(str(tmp_path / "wiki-0-train-00000.docs"), set(range(shard["documents"])))
    assert (tmp_path / "wiki-0-train-00000.docs").read_bytes()[4:8] == bytes(4)  # no time: the same bytes each time
    known = {document.id for document in documents_of("wiki-0")}
    assert len(origins) == shard["documents"] and {origin["id"] for origin in origins.values()} <= known
    assert origins[0]["source"] == "source" and origins[0]["url"].startswith("http://x/") and origins[0]["start"] == 7
    without = {
        split: [{k: v for k, v in e.items() if k != "docs_sha256"} for e in some] for split, some in entries.items()
    }
    one, other = (publish(str(tmp_path), some, tokenizer)["hash"] for some in (entries, without))
    assert one == other
    mixed = publish(str(tmp_path), entries, tokenizer, mixture={"weights": {"wiki": 1.0}})
    assert mixed["hash"] != one  # it decides batches


def test_a_damaged_sidecar_is_one_line(tokenizer, tmp_path):
    write(str(tmp_path), tokenizer)
    path = tmp_path / "wiki-0-train-00000.docs"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match="damaged"):
        read_origins(str(path), {10**6})
    path.write_bytes(b"something else")
    with pytest.raises(DamagedFileError, match="damaged"):
        read_origins(str(path), {0})


def test_shards_on_a_store_are_those_on_disk_and_come_with_their_sidecars(tokenizer, tmp_path):
    (tmp_path / "local").mkdir()
    url = f"memory://{tmp_path.name}"
    local, remote = (write(folder, tokenizer) for folder in (str(tmp_path / "local"), url))
    assert local == remote
    publish(url, remote, tokenizer)
    save(tokenizer, str(tmp_path / "local" / TOKENIZER))
    for name in (TOKENIZER, "tokenizer.json"):
        storage.write_atomic(storage.join(url, name), (tmp_path / "local" / name).read_bytes())
    fetched = fetch_shards(url, str(tmp_path / "cache"))
    for path in (tmp_path / "local").iterdir():
        assert path.read_bytes() == storage.read_bytes(os.path.join(fetched, path.name)), path.name
    assert read_manifest(fetched) == read_manifest(url)
    assert open_data(fetched).tokenizer.sha256 == tokenizer.sha256


def test_a_folder_that_cannot_be_written_is_one_line(tokenizer, tmp_path):
    with pytest.raises(LmError, match="cannot write in"):
        write(str(tmp_path / "none"), tokenizer)
