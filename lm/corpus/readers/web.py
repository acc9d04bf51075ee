"""The reader `web`: pages of WARC files, their main text out of the HTML, and the texts of WET files.

Each record says what it is (ISO 28500: `response` with a page, `conversion` with its text), whatever its file is named.
Records are told apart here rather than by fastwarc's iterator, which takes a truncated record for a short one and stops
at the first malformed one; HTTP and its encodings are fastwarc's work, HTML resiliparse's.
"""

import codecs
import dataclasses
import re
from collections.abc import Iterator
from typing import BinaryIO

from lm.corpus.config import SourceConfig
from lm.corpus.optional import require
from lm.corpus.readers import Skip
from lm.corpus.readers.inputs import name_of
from lm.corpus.readers.opening import open_input
from lm.corpus.record import Record
from lm.errors import DamagedFileError

MAX_PAGE_BYTES = 1 << 23  # Common Crawl cuts pages at 1 MiB, since 2025 at 5
MAX_DEPTH = 2000  # of nested elements: extraction takes time with its square, and browsers stop at 512
_MAX_HEADER_BYTES = 1 << 16
_SKIPPED_AT_ONCE = 1 << 18
_MAX_LOST = 0.001  # share of characters that may be no text in the encoding that a page names
_HTML = ("text/html", "application/xhtml+xml")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
_UNNESTED = frozenset(  # elements that hold nothing, or that the next of their kind ends
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
    | {"p", "li", "dt", "dd", "tr", "td", "th", "option", "thead", "tbody", "tfoot"}
)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A record as it stands in the file; `content` is None where it is too long to be used."""

    kind: str
    headers: dict[str, str]
    head: bytes
    content: bytes | None
    length: int


def read(path: str, source: SourceConfig, skip: Skip) -> Iterator[Record]:
    """Yield a record per HTML page that was answered with 200 (WARC), or per text (WET), in the order of the file.

    Its id is the WARC record's. Metadata: `date` of the crawl, `title`, and `content_language` as the page or the
    crawler names it. Other records of a file (requests, images, errors) are no documents and are passed over.

    Args:
      path: a local file or a URL, compressed as a whole or record by record.
      source: its `license` is that of all of them.
      skip: is told of malformed records, and of pages that are too large, not what their headers say, or without text.

    Raises:
      UsageError, LmError: as `open_input`.
      DamagedFileError: truncated, corrupt, or no WARC; all records before have been yielded.
    """
    name = name_of(path, source)
    with open_input(path) as stream:
        for number, block in enumerate(_blocks(path, name, stream, skip), 1):
            id = block.headers.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:") or f"{name}:{number}"
            url = block.headers.get("warc-target-uri", "").strip("<>") or None  # wget writes it in brackets
            where = f"{name}:{id}" + (f" ({url})" if url else "")
            if block.content is None:
                skip(where, f"{block.length:,} bytes, more than {MAX_PAGE_BYTES:,}")
                continue
            try:
                found = _text(block) if block.kind == "conversion" else _page(block)
            except _Unusable as error:
                skip(where, str(error))
                continue
            if found is None:
                continue
            text, metadata = found
            if not text:
                skip(where, "no text in it")
                continue
            if date := block.headers.get("warc-date"):
                metadata["date"] = date
            if source.license:
                metadata["license"] = source.license
            yield Record(id, text, url=url, metadata=metadata)


class _Unusable(Exception):
    """Why a page is not used."""


def _blocks(path: str, name: str, stream: BinaryIO, skip: Skip) -> Iterator[_Block]:
    """Yield the records that may be documents; after a malformed one, go on at the next line that starts a record."""
    count, lost = 0, False
    while line := stream.readline(_MAX_HEADER_BYTES):
        if not line.startswith(b"WARC/"):
            if line.strip() and not lost:
                if not count:
                    raise DamagedFileError(f'"{path}" is no WARC or WET file: it starts with {line[:40]!r}.')
                skip(f"{name}: after record {count}", "what follows is no WARC record")
                lost = True
            continue
        count += 1
        head, headers = _headers(stream)
        if not head.endswith((b"\n\n", b"\n\r\n")) and not stream.peek(1):
            raise DamagedFileError(f'"{path}" is damaged: the header of record {count} is truncated. Get it again.')
        length = headers.get("content-length", "")
        lost = not length.isdecimal()
        if lost:
            skip(f"{name}: record {count}", "its header has no length, or is too long")
            continue
        kind, size = headers.get("warc-type", ""), int(length)
        wanted = kind == "conversion" or (kind == "response" and "http" in headers.get("content-type", "http"))
        if wanted and size <= MAX_PAGE_BYTES:
            content = stream.read(size)
            missing = size - len(content)
        else:
            content, missing = None, size
            while missing and (passed := len(stream.read(min(missing, _SKIPPED_AT_ONCE)))):
                missing -= passed
        if missing:
            raise DamagedFileError(
                f'"{path}" is damaged: record {count} ends {missing:,} bytes early, it is truncated. Get it again.'
            )
        if wanted:
            yield _Block(kind, headers, line + head, content, size)


def _headers(stream: BinaryIO) -> tuple[bytes, dict[str, str]]:
    """Return a record's header lines as they are and by name in lower case; none if they are too long."""
    head = b""
    while line := stream.readline(_MAX_HEADER_BYTES):
        head += line
        if not line.strip():
            break
        if len(head) > _MAX_HEADER_BYTES:
            return head, {}
    pairs = (line.partition(":") for line in head.decode("utf-8", "replace").splitlines())
    return head, {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


def _text(block: _Block) -> tuple[str, dict[str, str]]:
    try:
        text = block.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unusable(f"not UTF-8 at byte {error.start:,}") from error
    language = block.headers.get("warc-identified-content-language")
    return text.strip(), {"content_language": language} if language else {}


def _page(block: _Block) -> tuple[str, dict[str, str]] | None:
    """Return a response's main text and metadata; None: it is no page."""
    warc = require("fastwarc.warc")
    try:
        record = warc.WarcRecord.from_bytes(block.head + block.content)
        record.is_http = True  # also where the header has no Content-Type
        record.parse_http(auto_decode="all")
        status, kind = record.http_headers.status_code, record.http_content_type
        if status != 200 or (kind or block.headers.get("warc-identified-payload-type")) not in _HTML:
            return None
        content = record.reader.read(MAX_PAGE_BYTES + 1)
        charset, language = record.http_charset, record.http_headers.get("Content-Language")
    except (OSError, ValueError) as error:
        raise _Unusable(f"its HTTP cannot be decoded: {error}") from error
    if len(content) > MAX_PAGE_BYTES:
        raise _Unusable(f"more than {MAX_PAGE_BYTES:,} bytes when decoded")
    return _main_text(_decode(content, charset), language)


def _main_text(html: str, language: str | None = None) -> tuple[str, dict[str, str]]:
    """Return a page's text without navigation, forms and footers, and its `title` and `content_language`.

    `language` is what HTTP says, for a page that says nothing.
    """
    if html.count("<") - html.count("</") > MAX_DEPTH and _depth(html) > MAX_DEPTH:
        raise _Unusable(f"elements nested more than {MAX_DEPTH:,} deep")
    try:
        tree = require("resiliparse.parse.html").HTMLTree.parse(html)
        extract = require("resiliparse.extract.html2text").extract_plain_text
        text = extract(tree, main_content=True, alt_texts=False)
        title, root = (tree.title or "").strip(), tree.document.query_selector("html")
    except (ValueError, RuntimeError) as error:
        raise _Unusable(f"its HTML cannot be parsed: {error}") from error
    language = (root.getattr("lang") if root else None) or language
    metadata = {"title": title, "content_language": (language or "").strip()}
    return re.sub(r"\n\s*\n", "\n\n", text).strip(), {key: value for key, value in metadata.items() if value}


def _depth(html: str) -> int:
    """Return how deep a page's elements are nested, at most: an element that is never closed counts to the end."""
    depth = deepest = 0
    for close, name in _TAG.findall(html):
        if name.lower() not in _UNNESTED:
            depth = max(0, depth - 1) if close else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _decode(content: bytes, charset: str | None) -> str:
    """Return a page's text: by its byte order mark, else as HTTP, the page or its bytes say, the first that fits."""
    encoding = require("resiliparse.parse.encoding")
    for mark, named in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):
            return content.decode(named, "replace").removeprefix("\ufeff")
    ways = (
        lambda: charset and encoding.map_encoding_to_html5(charset, fallback_utf8=False),
        lambda: encoding.detect_encoding(content, from_html_meta=True),
        lambda: encoding.detect_encoding(content),
    )
    for way in ways:  # finding out takes longer than trying
        if not (found := way()):
            continue
        try:
            text = content.decode(found, "replace")
        except LookupError:
            continue
        if text.count("\ufffd") <= _MAX_LOST * len(text):
            return text
    return content.decode("utf-8", "replace")
