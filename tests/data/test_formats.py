"""Other programs' token files: layouts as published, documents found again, and nothing half written."""

import argparse
import json
import os
import struct

import numpy as np
import pytest

from lm.commands import data as data_command
from lm.data.dataset import open_data
from lm.data.formats import FORMATS, stream
from lm.data.formats.convert import export_tokens, import_tokens
from lm.errors import DamagedFileError, LmError, UsageError
from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer

NAMES = {"nanogpt": "x.bin", "llmc": "x.bin", "megatron": "x", "datatrove": "x.ds"}


def documents_of(dataset, split="train"):
    return [
        shard.tokens[start + 1 : start + length].tolist()
        for shard in dataset.shards(split)
        for start, length in zip(shard.starts, shard.lengths, strict=True)
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", [2**20, 7])
def test_what_is_exported_comes_back_as_the_same_shards(sharded_folder, tmp_path, monkeypatch, name, piece):
    monkeypatch.setattr(stream, "_PIECE", piece)  # documents reach over the edges of what is read at one time
    monkeypatch.setattr(FORMATS["llmc"], "_PIECE", piece)
    dataset = open_data(sharded_folder)
    out = str(tmp_path / NAMES[name])
    files = export_tokens(dataset, "train", name, out)
    assert all(os.path.exists(file) for file in files)
    import_tokens({"train": out}, name, dataset.tokenizer, str(tmp_path / "back"), shard_tokens=700)
    back = open_data(str(tmp_path / "back"))
    identity = [(entry["sha256"], entry["ends_sha256"]) for entry in back.counts("train")["shards"]]
    assert identity == [(entry["sha256"], entry["ends_sha256"]) for entry in dataset.counts("train")["shards"]]
    (tmp_path / "again").mkdir()
    again = export_tokens(back, "train", name, str(tmp_path / "again" / NAMES[name]))
    for file, other in zip(files, again, strict=True):
        with open(file, "rb") as one, open(other, "rb") as two:
            assert one.read() == two.read()


def test_nanogpts_file_is_ids_with_a_separator_after_each_document(dataset, tmp_path):
    (path,) = export_tokens(dataset, "train", "nanogpt", str(tmp_path / "train.bin"))
    eot = dataset.tokenizer.eot_id
    assert np.fromfile(path, "<u2").tolist() == [t for d in documents_of(dataset) for t in (*d, eot)]


def test_llm_cs_file_has_its_header_and_a_separator_before_each_document(dataset, tmp_path):
    (path,) = export_tokens(dataset, "train", "llmc", str(tmp_path / "train.bin"))
    header, tokens = np.fromfile(path, "<i4", 256), np.fromfile(path, "<u2", offset=1024)
    assert header[:3].tolist() == [20240520, 1, len(tokens)] and not header[3:].any()
    assert tokens.tolist() == [t for d in documents_of(dataset) for t in (dataset.tokenizer.eot_id, *d)]


def read_megatron(prefix):
    """Read a pair of files as `megatron/core/datasets/indexed_dataset.py` lays them out, field by field."""
    index = open(f"{prefix}.idx", "rb").read()  # noqa: SIM115
    assert index[:9] == b"MMIDIDX\x00\x00"
    (version,), (code,) = struct.unpack_from("<Q", index, 9), struct.unpack_from("<B", index, 17)
    assert version == 1
    (sequences,), (bounds,) = struct.unpack_from("<Q", index, 18), struct.unpack_from("<Q", index, 26)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    documents = struct.unpack_from(f"<{bounds}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * bounds
    data, letter, size = open(f"{prefix}.bin", "rb").read(), {8: "H", 4: "i"}[code], {8: 2, 4: 4}[code]  # noqa: SIM115
    rows = [list(struct.unpack_from(f"<{n}{letter}", data, at)) for n, at in zip(lengths, pointers, strict=True)]
    assert size * sum(lengths) == len(data)
    return [[token for row in rows[a:b] for token in row] for a, b in zip(documents, documents[1:], strict=False)]


def test_megatrons_files_are_read_by_a_reader_written_from_the_layout(dataset, tmp_path):
    export_tokens(dataset, "train", "megatron", str(tmp_path / "corpus"))
    eot = dataset.tokenizer.eot_id
    assert read_megatron(tmp_path / "corpus") == [[*document, eot] for document in documents_of(dataset)]


def test_megatron_documents_of_several_sequences_and_other_types_are_joined(dataset, tmp_path):
    eot = dataset.tokenizer.eot_id
    tokens = np.array([1, 2, 3, 4, 5, eot, 6, 7], "<i4")
    lengths, pointers = np.array([2, 4, 2], "<i4"), np.array([0, 8, 24], "<i8")
    tokens.tofile(tmp_path / "x.bin")
    with open(tmp_path / "x.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 3))
        for part in (lengths, pointers, np.array([0, 2, 3], "<i8")):
            file.write(part.tobytes())
    for number, given in enumerate(("x", "x.idx", "x.bin")):
        out = tmp_path / f"out{number}"
        import_tokens({"train": str(tmp_path / given)}, "megatron", dataset.tokenizer, str(out))
        assert documents_of(open_data(str(out))) == [[1, 2, 3, 4, 5], [6, 7]]


def test_datatroves_index_holds_document_ends_and_may_be_missing(dataset, tmp_path):
    path, index = export_tokens(dataset, "train", "datatrove", str(tmp_path / "x.ds"))
    eot, documents = dataset.tokenizer.eot_id, documents_of(dataset)
    assert np.fromfile(path, "<u2").tolist() == [t for d in documents for t in (*d, eot)]
    assert np.fromfile(index, "<u8").tolist() == np.cumsum([len(d) + 1 for d in documents]).tolist()
    os.remove(index)
    import_tokens({"train": path}, "datatrove", dataset.tokenizer, str(tmp_path / "out"))
    assert documents_of(open_data(str(tmp_path / "out"))) == documents


def test_documents_go_on_in_the_next_file_and_empty_ones_are_left_out(dataset, tmp_path):
    eot = dataset.tokenizer.eot_id
    (tmp_path / "in").mkdir()
    np.array([eot, 1, 2, eot, eot, 3], "<u2").tofile(tmp_path / "in" / "a.bin")
    np.array([4, eot, 5], "<u2").tofile(tmp_path / "in" / "b.bin")
    import_tokens({"train": str(tmp_path / "in")}, "nanogpt", dataset.tokenizer, str(tmp_path / "out"))
    assert documents_of(open_data(str(tmp_path / "out"))) == [[1, 2], [3, 4], [5]]


BAD = {
    "an odd byte": ("nanogpt", "x.bin", b"\x01\x00\x02", DamagedFileError, "truncated or of another format"),
    "an id beyond the vocabulary": ("nanogpt", "x.bin", b"\x01\x00\xff\xff", UsageError, "token id 65535.*has 320"),
    "no header": ("llmc", "x.bin", b"\x01\x00" * 600, DamagedFileError, "not a token shard"),
    "no index": ("megatron", "x.idx", b"\x01\x00" * 60, DamagedFileError, "not an index"),
    "a cut index": (
        "megatron",
        "x.idx",
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 5, 6),
        DamagedFileError,
        "truncated",
    ),
    "floating point": (
        "megatron",
        "x.idx",
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 7, 0, 1),
        DamagedFileError,
        "type 7",
    ),
    "only separators": ("nanogpt", "x.bin", struct.pack("<2H", 319, 319), UsageError, "no documents"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_something_else_is_one_line_and_leaves_nothing(dataset, tmp_path, name):
    format_name, file, content, error, message = BAD[name]
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / file).write_bytes(content)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=message) as caught:
        import_tokens({"train": str(tmp_path / file)}, format_name, dataset.tokenizer, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_an_index_that_does_not_fit_its_file_is_refused(dataset, tmp_path):
    path, _ = export_tokens(dataset, "train", "datatrove", str(tmp_path / "x.ds"))
    prefix = str(tmp_path / "y")
    export_tokens(dataset, "train", "megatron", prefix)
    for file in (path, f"{prefix}.bin"):
        os.truncate(file, os.path.getsize(file) - 2)
    for name, given in (("datatrove", path), ("megatron", prefix)):
        with pytest.raises(DamagedFileError, match="does not fit"):
            import_tokens({"train": given}, name, dataset.tokenizer, str(tmp_path / "out"))


def test_an_index_whose_ends_go_back_is_refused(dataset, tmp_path):
    np.arange(6, dtype="<u2").tofile(tmp_path / "x.ds")
    np.array([5, 3, 6], "<u8").tofile(tmp_path / "x.ds.index")
    with pytest.raises(DamagedFileError, match="does not fit"):
        import_tokens({"train": str(tmp_path / "x.ds")}, "datatrove", dataset.tokenizer, str(tmp_path / "out"))


def test_a_missing_separator_is_noticed_before_memory_is_full(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_LONGEST", 1000)
    monkeypatch.setattr(stream, "_PIECE", 100)
    np.full(5000, 7, "<u2").tofile(tmp_path / "x.bin")
    with pytest.raises(UsageError, match="no separator"):
        import_tokens({"train": str(tmp_path / "x.bin")}, "nanogpt", dataset.tokenizer, str(tmp_path / "out"))


def test_an_export_is_whole_or_not_there(dataset, tmp_path, monkeypatch):
    with pytest.raises(LmError, match="cannot write"):
        export_tokens(dataset, "train", "nanogpt", str(tmp_path / "none" / "x.bin"))

    def broken(documents, path, tokenizer):
        with stream.written(path) as (file,):
            file.write(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(FORMATS["nanogpt"], "write", broken)
    with pytest.raises(KeyboardInterrupt):
        export_tokens(dataset, "train", "nanogpt", str(tmp_path / "x.bin"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "x.ds").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export_tokens(dataset, "train", "datatrove", str(tmp_path / "x.ds"))


def run(*arguments):
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    args = parser.parse_args(list(map(str, arguments)))
    args.overrides = []
    data_command.run(args)


def test_the_commands_import_and_export(folder, tmp_path, capsys):
    tokenizer = os.path.join(folder, "tokenizer.tiktoken")
    for split in ("train", "validation"):
        run("export", folder, "--format", "llmc", "--split", split, "--out", tmp_path / f"{split}.bin")
    assert capsys.readouterr().out.split() == [str(tmp_path / "train.bin"), str(tmp_path / "validation.bin")]
    given = ["--from", tmp_path / "train.bin", "--validation", tmp_path / "validation.bin", "--format", "llmc"]
    run("import", *given, "--tokenizer", tokenizer, "--domain", "old", "--out", tmp_path / "out", "--json")
    card = json.loads(capsys.readouterr().out)
    for split in ("train", "validation"):
        assert card["splits"][split]["tokens"] == open_data(folder).counts(split)["tokens"]
    assert card["splits"]["train"]["domains"]["old"]["tokens"] == card["splits"]["train"]["tokens"]
    with pytest.raises(UsageError, match='Did you mean "megatron"'):
        run("export", folder, "--format", "megatronn", "--out", tmp_path / "x")
    with pytest.raises(UsageError, match="no files at"):
        run("import", "--from", tmp_path / "none", *given[2:], "--tokenizer", tokenizer, "--out", tmp_path / "other")


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_vocabulary_has_32_bits_or_is_refused(tmp_path, name):
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {bytes([high, low]): 256 + 256 * high + low for high in range(256) for low in range(256)}
    tokenizer = Tokenizer("large", PATTERNS["gpt4"], ranks, {END_OF_TEXT: len(ranks)})
    np.array([[len(ranks)], [5], [65_600]], "<i4").tofile(tmp_path / "x.bin")
    with open(tmp_path / "x.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 1, 2) + struct.pack("<iqqq", 3, 0, 0, 1))
    import_tokens({"train": str(tmp_path / "x")}, "megatron", tokenizer, str(tmp_path / "data"))
    dataset = open_data(str(tmp_path / "data"))
    assert documents_of(dataset) == [[5, 65_600]]
    out = str(tmp_path / f"out-{NAMES[name]}")
    if name == "nanogpt":
        with pytest.raises(UsageError, match="16 bits"):
            export_tokens(dataset, "train", name, out)
        return
    export_tokens(dataset, "train", name, out)
    import_tokens({"train": out}, name, tokenizer, str(tmp_path / "back"))
    assert documents_of(open_data(str(tmp_path / "back"))) == [[5, 65_600]]


def test_a_folder_with_a_validation_file_in_it_is_not_trained_on_that(dataset, tmp_path):
    for split in ("train", "val"):
        export_tokens(dataset, "train", "nanogpt", str(tmp_path / f"{split}.bin"))
    paths = {"train": str(tmp_path), "validation": str(tmp_path / "val.bin")}
    import_tokens(paths, "nanogpt", dataset.tokenizer, str(tmp_path / "back"))
    counts = open_data(str(tmp_path / "back")).counts
    assert counts("train")["documents"] == counts("validation")["documents"] == dataset.counts("train")["documents"]
    with pytest.raises(UsageError, match="another split"):
        import_tokens({**paths, "train": paths["validation"]}, "nanogpt", dataset.tokenizer, str(tmp_path / "again"))
