"""Files are opened by what they hold, wherever they are, and damage is found where it is."""

import bz2
import gzip
import io
import lzma
import os
import tracemalloc

import pytest

from lm.corpus import optional
from lm.corpus.readers import opening
from lm.corpus.readers.opening import TooLong, check_sha256, lines, open_input
from lm.errors import DamagedFileError, LmError, UsageError

TEXT = b"".join(b"line %d of a text that is long enough to fill more than one buffer\n" % i for i in range(20_000))


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def bzip2(data: bytes) -> bytes:
    return bz2.compress(data, compresslevel=1)  # blocks of 100 kB


COMPRESSORS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bzip2, "xz": lzma.compress, "zstd": zstd}
COMPRESSED = ["gzip", "bzip2", "xz", "zstd"]


def write(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def read_until_error(path: str, size: int = 5000) -> tuple[bytes, str]:
    """Return what could be read and the error's message."""
    content = b""
    with open_input(path) as stream, pytest.raises(DamagedFileError) as error:
        while chunk := stream.read(size):
            content += chunk
    return content, str(error.value)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_content_is_the_same_however_it_is_compressed(tmp_path, name):
    with open_input(write(tmp_path / "no-suffix", COMPRESSORS[name](TEXT))) as stream:
        assert stream.read() == TEXT


@pytest.mark.parametrize("name", COMPRESSED)
def test_members_in_a_row_are_one_file(tmp_path, name):
    compress = COMPRESSORS[name]
    path = write(tmp_path / "multi", compress(TEXT) + compress(b"") + compress(b"the end"))
    with open_input(path) as stream:
        assert stream.read() == TEXT + b"the end"


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_file_cut_short_gives_what_came_before_and_an_error(tmp_path, name):
    whole = COMPRESSORS[name](os.urandom(300_000).hex().encode())
    content, message = read_until_error(write(tmp_path / "cut", whole[: len(whole) * 3 // 4]))
    assert 100_000 < len(content) < 600_000 and "truncated" in message and f"{len(content):,} bytes" in message


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_wrong_checksum_is_found(tmp_path, name):
    whole = bytearray(zstd_with_checksum(TEXT) if name == "zstd" else COMPRESSORS[name](TEXT))
    whole[-5 if name == "gzip" else -2 if name == "zstd" else len(whole) // 2] ^= 0xFF
    _, message = read_until_error(write(tmp_path / "wrong", bytes(whole)))
    assert "corrupt" in message and "wrong" in message


def zstd_with_checksum(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def test_bytes_after_the_last_member_are_an_error_and_zeros_are_padding(tmp_path):
    with open_input(write(tmp_path / "padded", gzip.compress(TEXT) + bytes(200_000))) as stream:
        assert stream.read() == TEXT
    content, message = read_until_error(write(tmp_path / "followed", gzip.compress(TEXT) + b"<html>error</html>"))
    assert content == TEXT and "something else follows" in message


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_bomb_is_refused_and_a_small_file_may_expand(tmp_path, name, monkeypatch):
    monkeypatch.setattr(opening, "EXPANSION_FLOOR", 1 << 20)
    bomb = write(tmp_path / "bomb", COMPRESSORS[name](bytes(20 << 20)))
    content, message = read_until_error(bomb, 1 << 16)
    assert "bomb" in message and len(content) < (12 << 20)
    with open_input(write(tmp_path / "small", COMPRESSORS[name](bytes(1 << 20)))) as stream:
        assert len(stream.read()) == 1 << 20
    with open_input(bomb, max_expansion=1e9) as stream:
        assert sum(map(len, iter(lambda: stream.read(1 << 16), b""))) == 20 << 20


def test_a_file_at_a_url_is_read_as_a_local_one(tmp_path):
    import fsspec

    url = f"memory://{tmp_path.name}/text.bz2"
    fsspec.filesystem("memory").pipe_file(url, bz2.compress(TEXT))
    with open_input(url) as stream:
        assert stream.read() == TEXT
    with pytest.raises(UsageError, match="no file"), open_input(f"memory://{tmp_path.name}/absent.bz2"):
        pass


@pytest.mark.peer  # fsspec's http needs aiohttp, which comes with other packages
def test_a_file_on_a_web_server_is_read_and_a_connection_that_drops_is_an_error(site):
    from tests.data.http import Step

    site.files["/text.bz2"] = bz2.compress(TEXT)
    site.plan = [Step(ignore_range=True) for _ in range(9)]
    with open_input(f"{site.url}/text.bz2") as stream:
        assert stream.read() == TEXT
    site.plan = [Step(drop_at=1000) for _ in range(9)]
    with pytest.raises(LmError), open_input(f"{site.url}/text.bz2") as stream:
        stream.read()


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (str(tmp_path / "absent.xml.bz2"), str(tmp_path)):
        with pytest.raises(UsageError, match="no file"), open_input(path):
            pass


def test_an_empty_file_has_no_content_and_an_empty_archive_is_damaged(tmp_path):
    with open_input(write(tmp_path / "empty.txt", b"")) as stream:
        assert stream.read() == b""
    assert "never empty" in read_until_error(write(tmp_path / "empty.gz", b""))[1]


def test_lines_come_without_their_ends_and_long_ones_are_passed_over():
    stream = io.BufferedReader(io.BytesIO(b"one\r\n" + b"x" * 10 + b"\n\n" + b"y" * 11 + b"\nlast"))
    assert list(lines(stream, 10)) == [b"one", b"x" * 10, b"", TooLong(11), b"last"]
    assert list(lines(io.BytesIO(b"z" * 50), 10)) == [TooLong(50)]


def test_lines_before_the_damage_are_given(tmp_path):
    path = write(tmp_path / "cut.gz", gzip.compress(TEXT)[:-2000])
    got = []
    with open_input(path) as stream, pytest.raises(DamagedFileError):
        got.extend(lines(stream, 1000))
    assert got == TEXT.split(b"\n")[: len(got)] and len(got) > 10_000


def test_a_line_of_200_megabytes_takes_little_memory(tmp_path):
    path = tmp_path / "long.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"0123456789abcdef" * (1 << 16))
        file.write(b"\nshort\n")
    tracemalloc.start()
    with open_input(str(path), max_expansion=1e4) as stream:
        assert list(lines(stream, 1 << 20)) == [TooLong(200 << 20), b"short"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_checksum_is_returned_and_a_wrong_one_refused(tmp_path):
    path = write(tmp_path / "abc", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert check_sha256(path) == check_sha256(path, digest.upper()) == digest
    with pytest.raises(DamagedFileError, match="expected 000"):
        check_sha256(path, "0" * 64)


def test_a_library_that_is_missing_names_the_extra():
    assert optional.require("json").dumps([]) == "[]"
    with pytest.raises(UsageError, match=r"no_such_library.*\[data\]"):
        optional.require("no_such_library")
