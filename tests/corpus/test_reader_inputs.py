"""Paths of a source become files with sizes, checksums and names of their own; readers are found by name."""

import hashlib
import os

import pytest

from lm.corpus import config
from lm.corpus.config import SourceConfig
from lm.corpus.readers import READERS, find_reader, input_files, name_of
from lm.corpus.record import Record
from lm.errors import ConfigError, DamagedFileError, UsageError


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def labels(*paths, reader="text"):
    return [found.label for found in input_files(SourceConfig(reader=reader, paths=tuple(map(str, paths))))]


def test_a_folder_stands_for_its_fitting_files_sorted_and_without_hidden_ones(tmp_path):
    write(tmp_path / "d", "b.txt", "a/c.txt.gz", "image.png", ".hidden.txt", ".git/x.txt", "a/d.jsonl.zst", "e.warc.gz")
    write(tmp_path / "d", "f.warc.wet.gz", "f.warc.wat.gz", "g.parquet", "h.xml.bz2")
    folder = tmp_path / "d"
    assert labels(folder) == ["d/a/c.txt.gz", "d/b.txt"]
    assert labels(folder, reader="books") == ["d/a/c.txt.gz", "d/b.txt"]
    assert labels(folder, reader="jsonl") == ["d/a/d.jsonl.zst"]
    assert labels(folder, reader="web") == ["d/e.warc.gz", "d/f.warc.wet.gz"]
    assert labels(folder, reader="parquet") == ["d/g.parquet"]
    assert labels(folder, reader="wikipedia") == ["d/h.xml.bz2"]


def test_globs_files_and_folders_keep_their_order_and_none_comes_twice(tmp_path):
    write(tmp_path, "x/2.txt", "x/1.txt", "y/1.txt", "odd[1].txt")
    found = labels(tmp_path / "y", tmp_path / "x" / "*.txt", tmp_path / "x" / "2.txt", tmp_path / "odd[1].txt")
    assert found == ["y/1.txt", "x/1.txt", "x/2.txt", "odd[1].txt"]
    (one,) = input_files(SourceConfig(paths=(str(tmp_path / "x" / "2.txt"),)))
    assert (one.path, one.size, one.sha256, one.label) == (str(tmp_path / "x" / "2.txt"), 7, None, "2.txt")


def test_names_do_not_change_with_the_machine_or_with_new_files_and_are_never_shared(tmp_path):
    for root in (tmp_path / "here", tmp_path / "there" / "deep"):
        write(root, "a/x.txt", "b/x.txt")
        paths = (str(root / "a"), str(root / "b" / "*.txt"))
        assert labels(*paths) == ["a/x.txt", "b/x.txt"]
        write(root, "a/sub/new.txt")
        assert labels(*paths) == ["a/sub/new.txt", "a/x.txt", "b/x.txt"]
        source = SourceConfig(paths=paths)
        assert name_of(str(root / "a" / "x.txt"), source) == "a/x.txt"
    assert labels("./" + os.path.relpath(tmp_path / "here" / "a")) == ["a/sub/new.txt", "a/x.txt"]


def test_code_takes_a_folder_as_one_input_and_a_folder_of_archives_as_several(tmp_path):
    write(tmp_path / "repos", "one/a.py", "one/.git/x", "two/b.py")
    write(tmp_path / "archives", "a.tar.gz", "b.zip")
    (folder,) = input_files(SourceConfig(reader="code", paths=(str(tmp_path / "repos" / "one"),)))
    assert (folder.label, folder.size) == ("one", len("one/a.py"))
    assert labels(tmp_path / "repos" / "*", reader="code") == ["one", "two"]
    assert labels(tmp_path / "archives", reader="code") == ["archives/a.tar.gz", "archives/b.zip"]


def test_checksums_belong_to_the_files_in_order(tmp_path):
    write(tmp_path, "a.txt", "b.txt")
    paths = (str(tmp_path / "*.txt"),)
    found = input_files(SourceConfig(paths=paths, sha256=("", "AB" * 32)))
    assert [one.sha256 for one in found] == [None, "ab" * 32]
    for wrong in (("ab",) * 3, ("ab",)):
        with pytest.raises(ConfigError, match=r"config.sources.s.sha256 has \d entries and its paths 2 files"):
            input_files(SourceConfig(paths=paths, sha256=wrong), "s")


def test_nothing_at_a_path_is_an_error(tmp_path):
    write(tmp_path, "a.png")
    for path in ("missing.txt", "*.txt", "missing/"):
        with pytest.raises(UsageError, match="nothing"):
            labels(tmp_path / path)
    with pytest.raises(UsageError, match="nothing that the reader text takes"):
        labels(tmp_path)
    with pytest.raises(UsageError, match="nothing"):
        labels("memory://nowhere/*.txt")
    with pytest.raises(ConfigError, match=r"config.sources.s.paths"):
        input_files(SourceConfig(), "s")
    with pytest.raises(UsageError, match="nosuch"):
        labels("nosuch://bucket/a.txt")


def test_a_store_is_listed_as_a_folder_is():
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("/inputs/a.txt", "/inputs/deep/b.txt.gz", "/inputs/c.png", "/inputs/.hidden/d.txt"):
        store.pipe_file(name, b"12345")
    try:
        found = input_files(SourceConfig(paths=("memory://inputs",)))
        assert [(one.path, one.size) for one in found] == [
            ("memory://inputs/a.txt", 5),
            ("memory://inputs/deep/b.txt.gz", 5),
        ]
        assert labels("memory://inputs/*.txt") == ["a.txt"]
        assert labels("memory://inputs/a.txt", "memory://inputs/deep/*") == ["a.txt", "deep/b.txt.gz"]
        store.pipe_file("/inputs/deep/r.tar.gz", b"1")
        assert labels("memory://inputs", reader="code") == ["inputs/deep/r.tar.gz"]
        (record,) = find_reader("text").read("memory://inputs/a.txt", SourceConfig(paths=("memory://inputs",)), print)
        assert (record.id, record.text) == ("inputs/a.txt", "12345")
    finally:
        store.rm("/inputs", recursive=True)


def test_a_url_is_downloaded_once_and_checked(site, tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path))
    site.files |= {"/a/corpus.txt": b"over the net", "/b/corpus.txt": b"another"}
    urls = (f"{site.url}/a/corpus.txt", f"{site.url}/b/corpus.txt")
    sha256 = hashlib.sha256(b"over the net").hexdigest()
    source = SourceConfig(paths=urls, sha256=(sha256, ""))
    for _ in range(2):
        first, second = input_files(source)
        assert (first.size, first.sha256, first.label) == (12, sha256, "a/corpus.txt")
        assert (second.size, second.label) == (7, "b/corpus.txt")
    assert len(site.seen) == 2
    (record,) = find_reader("text").read(second.path, source, print)
    assert (record.id, record.text) == ("b/corpus.txt", "another")
    site.files["/c.txt"] = b"tampered"
    with pytest.raises(DamagedFileError, match="sha256"):
        input_files(SourceConfig(paths=(f"{site.url}/c.txt",), sha256=(sha256,)))
    with pytest.raises(UsageError, match="404"):
        input_files(SourceConfig(paths=(f"{site.url}/missing.txt",)))


def read(path, source, skip):
    yield Record("1", path)


def steps(source):
    return [len]


def test_readers_are_found_by_name_and_a_users_own_by_module():
    assert READERS.keys() == config.READERS.keys()
    assert [step.name for step in find_reader("code").steps(SourceConfig())] == ["code"]
    assert find_reader("jsonl").steps(SourceConfig()) == []
    own = find_reader(f"{__name__}:read")
    assert own.read is read and own.steps(SourceConfig()) == [len]
    with pytest.raises(ConfigError, match='Did you mean "parquet"'):
        find_reader("parket")
    with pytest.raises(ConfigError, match="no_such_function"):
        find_reader(f"{__name__}:no_such_function")
