"""WARC and WET files become texts, record by record, and what is wrong with one leaves the others."""

import gzip
import pathlib
import tracemalloc

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import web
from lm.errors import DamagedFileError

PROSE = "The river rises in the hills above the town and runs slowly through wide meadows to the sea. " * 3


def page(text: str = PROSE, title: str = "River", head: str = "") -> str:
    return (
        f'<html lang="en"><head><title>{title}</title>{head}</head><body><nav><a href="/">Home</a> <a href="/x">Shop'
        f"</a></nav><main><h1>{title}</h1><p>{text}</p></main><footer>All rights reserved</footer></body></html>"
    )


def http(body: bytes, kind: str = "text/html", status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}\r\n".encode() + body


def record(name: str, block: bytes, kind: str = "response", length=None, extra: str = "") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{name}>\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n"
        f"WARC-Target-URI: http://example.org/{name}\r\n{extra}"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def good(name: str) -> bytes:
    return record(name, http(page().encode()))


def read(path, content: bytes | None = None):
    """Return records, what was skipped (where, reason), and the error."""
    if content is not None:
        path.write_bytes(content)
    records, skipped, error = [], [], None
    source = SourceConfig(reader="web", paths=(str(path),))
    try:
        records.extend(web.read(str(path), source, lambda *found: skipped.append(found)))
    except DamagedFileError as damaged:
        error = str(damaged)
    return records, skipped, error


def test_a_page_becomes_its_main_text_with_url_date_title_and_language(tmp_path):
    (found,), skipped, error = read(tmp_path / "a.warc", good("a"))
    assert (found.id, found.url) == ("a", "http://example.org/a")
    assert found.metadata == {"title": "River", "content_language": "en", "date": "2020-01-02T03:04:05Z"}
    assert found.text == f"River\n\n{PROSE.strip()}"  # no navigation, no footer
    assert (skipped, error) == ([], None)


def test_records_are_read_whether_compressed_one_by_one_or_as_a_whole(tmp_path):
    names = ["a", "b", "c"]
    one_by_one = b"".join(gzip.compress(good(name)) for name in names)
    whole = gzip.compress(b"".join(good(name) for name in names))
    for content in (one_by_one, whole):
        assert [found.id for found in read(tmp_path / "a.warc.gz", content)[0]] == names


def test_what_is_no_page_is_passed_over(tmp_path):
    content = b"".join(
        [
            record("info", b"software: x\r\n", "warcinfo"),
            record("request", b"GET / HTTP/1.1\r\n\r\n", "request"),
            record("missing", http(page().encode(), status="404 Not Found")),
            record("image", http(b"\x89PNG", "image/png")),
            record("metadata", b"x: y", "metadata"),
            record("xhtml", http(page().encode(), "application/xhtml+xml; charset=utf-8")),
            record("dns", b"20200102\nexample.org. IN A 1.2.3.4", extra="Content-Type: text/dns\r\n"),
        ]
    )
    records, skipped, error = read(tmp_path / "a", content)
    assert ([found.id for found in records], skipped, error) == (["xhtml"], [], None)


def test_a_wet_file_is_known_by_its_records_and_keeps_their_text(tmp_path):
    text = "Ein Text.\nNoch eine Zeile — mit Umlauten: äöü.\n"
    language = "WARC-Identified-Content-Language: deu\r\n"
    content = record("t", text.encode(), "conversion", extra=language) + record("bad", b"\xff\xfe\x00", "conversion")
    (found,), skipped, _ = read(tmp_path / "a.warc.gz", gzip.compress(content))
    assert found.text == text.strip()
    assert found.metadata == {"content_language": "deu", "date": "2020-01-02T03:04:05Z"}
    assert len(skipped) == 1 and "bad" in skipped[0][0] and "not UTF-8 at byte 0" in skipped[0][1]


RUSSIAN = "Река начинается в холмах над городом и медленно течёт через широкие луга к самому морю. " * 3


@pytest.mark.parametrize(
    ("encoding", "header", "meta"),
    [
        ("windows-1251", "; charset=windows-1251", ""),
        ("windows-1251", "", '<meta charset="windows-1251">'),
        ("windows-1251", "", ""),  # by its bytes
        ("windows-1251", "; charset=utf-8", '<meta charset="windows-1251">'),  # HTTP is wrong
        ("windows-1251", "; charset=no-such", ""),
        ("utf-16", "; charset=iso-8859-1", ""),  # the byte order mark is right
        ("utf-8-sig", "; charset=windows-1251", ""),
    ],
)
def test_a_page_is_decoded_as_it_is_encoded_whatever_names_it(tmp_path, encoding, header, meta):
    block = http(page(RUSSIAN, "Река", meta).encode(encoding), "text/html" + header)
    (found,), _, _ = read(tmp_path / "a", record("a", block))
    assert found.text == f"Река\n\n{RUSSIAN.strip()}"


@pytest.mark.parametrize("coding", ["gzip", "chunked", "both"])
def test_http_encodings_are_undone(tmp_path, coding):
    body, extra = page().encode(), ""
    if coding != "chunked":
        body, extra = gzip.compress(body), "Content-Encoding: gzip\r\n"
    if coding != "gzip":
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        extra += "Transfer-Encoding: chunked\r\n"
    (found,), _, _ = read(tmp_path / "a", record("a", http(body, extra=extra)))
    assert found.text.endswith(PROSE.strip())


BAD = {
    "HTTP that is not gzip": (record("bad", http(b"not gzip" * 9, extra="Content-Encoding: gzip\r\n")), "HTTP"),
    "HTTP that is not chunked": (record("bad", http(b"zz\r\nx", extra="Transfer-Encoding: chunked\r\n")), "HTTP"),
    "no length": (record("bad", b"", length="many"), "no length"),
    "a negative length": (record("bad", http(page().encode()), length=-5), "no length"),
    "a length that is too short": (record("bad", http(b"", "image/png") + b"x" * 500, length=50), "no WARC record"),
    "an endless header": (record("bad", b"x", extra=f"X-Y: {'y' * 200_000}\r\n"), "no length"),
    "garbage": (b"\x00\xffgarbage\r\n" * 40, "no WARC record"),
    "no text": (record("bad", http(b"<html><body><script>x()</script></body></html>")), "no text"),
    "a bottomless page": (record("bad", http(b"<div>" * 50_000 + page().encode())), "nested"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_record_is_skipped_with_its_reason_and_those_around_it_are_read(tmp_path, name):
    bad, reason = BAD[name]
    records, skipped, error = read(tmp_path / "a.warc", good("before") + bad + good("after"))
    assert [found.id for found in records if found.id != "bad"] == ["before", "after"]
    assert error is None
    assert len(skipped) == 1 and reason in skipped[0][1], skipped


@pytest.mark.parametrize("cut", [60, 150, 400, 600])  # within the page, and within the header
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_yields_what_comes_before_and_says_so(tmp_path, cut, compressed):
    last = good("last")
    assert 600 < len(last) < 800
    if compressed:
        content = gzip.compress(good("a")) + gzip.compress(good("b")) + gzip.compress(last)[: -cut // 3]
    else:
        content = good("a") + good("b") + last[:-cut]
    records, _, error = read(tmp_path / "a.warc.gz", content)
    assert [found.id for found in records] == ["a", "b"]
    assert "truncated" in error and "a.warc.gz" in error


def test_a_file_that_is_no_warc_is_damaged_not_empty(tmp_path):
    assert "no WARC or WET" in read(tmp_path / "a.warc", b"<html>hello</html>\n")[2]


def test_a_page_beyond_the_limit_is_skipped_in_bounded_memory(tmp_path):
    size = 6 * web.MAX_PAGE_BYTES
    bomb = http(gzip.compress(b" " * size), extra="Content-Encoding: gzip\r\n")
    content = record("large", http(b" " * size)) + record("bomb", bomb) + good("after")
    (tmp_path / "a").write_bytes(content)
    del content
    tracemalloc.start()
    records, skipped, _ = read(tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found.id for found in records] == ["after"]
    assert ["more than" in reason for _, reason in skipped] == [True, True]
    assert peak < 3 * web.MAX_PAGE_BYTES


@pytest.mark.real_data
def test_real_crawls_give_the_pages_that_they_hold(real_data):
    dolma, resiliparse = ("dolma-sample-0000.warc.gz", 22), ("resiliparse-warcfile.warc.gz", 16)
    for name, count in (dolma, resiliparse, ("whirlwind.warc.gz", 1), ("whirlwind.warc.wet.gz", 1)):
        records, skipped, error = read(pathlib.Path(real_data, "web", name))
        assert (len(records), skipped, error) == (count, [], None), name
        assert not any("\ufffd" in found.text or "<div" in found.text for found in records), name
        assert len({found.id for found in records}) == count
