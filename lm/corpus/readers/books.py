"""Plain-text books, one document each: Project Gutenberg's wrapping removed, hard-wrapped lines joined."""

import re
from collections.abc import Callable, Iterator

from lm.corpus.config import SourceConfig
from lm.corpus.readers.hard_wrapped import unwrap
from lm.corpus.readers.inputs import name_of
from lm.corpus.readers.opening import open_input
from lm.corpus.record import Record

MAX_BYTES = 64 << 20  # the largest of Project Gutenberg's texts have about 30 MB

_ENCODINGS = {"iso-8859-1": "cp1252", "iso-latin-1": "cp1252", "latin1": "cp1252", "windows-1252": "cp1252", "ascii": "cp1252",
              "us-ascii": "cp1252", "iso-8859-2": "iso-8859-2", "iso-8859-15": "iso-8859-15", "windows-1250": "cp1250",
              "windows-1251": "cp1251", "koi8-r": "koi8-r", "iso-8859-7": "iso-8859-7", "macintosh": "mac-roman"}  # fmt: skip
_DECLARED = re.compile(rb"^Character set encoding:[ \t]*(?:ISO Latin-1|([\w-]+))", re.IGNORECASE | re.MULTILINE)

# Where the text begins and ends: since 2003 "*** START OF", before that the small print, then whatever said it.
_START = re.compile(
    r"^[ \t]*\*{0,3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG[^*]{0,300}(?:\*{3}[^\n]*|\n\s*\n)"
    r"|^[ \t]*\*{1,3}[ \t]*END[ *]*THE SMALL PRINT![^\n]*"
    r"|^\*+These [Ee]texts (?:Are|Were) Prepared By Thousands of Volunteers!?\*+.*?\n\n(?=\n)",
    re.MULTILINE | re.DOTALL,
)
_END = re.compile(
    r"^[ \t]*\*{2,3}[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|^[ \t]*\*{0,3}[ \t]*(?:The )?End of (?:the |this )?(?:is the )?(?:Project Gutenberg|PG)(?:['’]s)?\b"
    r"|^[ \t]*\*{0,3}[ \t]*End of (?:this|the) (?:e-?book|e-?text)\b[^\n]*Gutenberg",
    re.MULTILINE | re.IGNORECASE,
)
_LATE_SMALL_PRINT = re.compile(r"^[ \t]*\*{3}START\*{2}THE SMALL PRINT!", re.MULTILINE)
_FIELD = re.compile(r"^(Title|Author):[ \t]*(\S[^\n]*(?:\n[ \t]+\S[^\n]*)*)", re.MULTILINE)
_OPENING = re.compile(
    r"Project Gutenberg(?:['’]s|['’]s Etext of| E-?(?:Book|Text) of)\s+(?:the\s+)?(.{1,200}?)(?:,\s+|\n|\s+)by\s+([^\n*,#\[]{2,80})",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"\[(?:E-?Book|E-?Text)\s*#\s*(\d+)\]", re.IGNORECASE)
_CREDIT = re.compile(
    r"\W*(?:(?:this|the)\s+)?(?:produced\b|additional editing|e-?(?:text|book)s? (?:was |were |is )?(?:prepared|produced|scanned|transcribed|created)"
    r"|transcribed (?:from|by)|prepared by|scanned (?:and|by)|an anonymous (?:project gutenberg )?volunteer|html version by|text file produced"
    r"|credits?:|proofread by|digiti[sz]ed by|distributed proofread|updated editions|note: project gutenberg|etext by"
    r"|the online distributed|images (?:of|from|generously)|file (?:was )?produced)",
    re.IGNORECASE,
)

_MARKER = re.compile(
    r"\[\s*(?:Illustrations?|Transcriber['’]?s? notes?|Sidenote|Frontispiece|Note: images?)\b", re.IGNORECASE
)
_PAGE = re.compile(r"[ \t]*(?:\[(?:Pg|Page|p\.)[ ]?[\divxlc]+\]|\{(?:Pg |Page |p\. ?)?\d+\})", re.IGNORECASE)
_NOTE = re.compile(r"[\W_]*transcriber['’]?s?['’]? +notes?\b", re.IGNORECASE)
_ITALICS = re.compile(r"(?<![^\W_])_(?=[^\s_])([^_]{1,2000}?)_(?![^\W_])")
_BOLD = re.compile(r"(?<![\w=])=(?=[^\s=])([^=\n]{1,200}?)(?<=[^\s=])=(?![\w=])")


def read(path: str, source: SourceConfig, skip: Callable[[str, str], None]) -> Iterator[Record]:
    """Yield the book that a file holds.

    The id is the name of the file (`name_of`). Metadata, where the book says them: `title`, `author`, `gutenberg` (its number there).

    Args:
      path: a text file in UTF-8, UTF-16 with its mark, or the 8-bit encoding that its header declares (without one
        Windows-1252, of which Latin-1's text is a part); compressed or not, local or a URL.
      source: its `paths`, which the name begins below.
      skip: told of a file that is no text or beyond `MAX_BYTES`.

    Raises:
      UsageError, LmError, DamagedFileError: as `open_input` and its stream.
    """
    with open_input(path) as stream:
        data = stream.read(MAX_BYTES + 1)
        data += stream.read(1)  # raises if the stream ended at damage
    if len(data) > MAX_BYTES:
        return skip(name_of(path, source), f"larger than {MAX_BYTES:,} bytes")
    text = decode(data)
    if text is None:
        return skip(name_of(path, source), "it is no text: it holds zero bytes")
    header, body = split_header(text)
    metadata = _metadata(header)
    body = unwrap(_without_markers(_without_credits(body)))
    if not body:
        return skip(name_of(path, source), "it holds no text")
    number = metadata.get("gutenberg")
    yield Record(
        name_of(path, source), body, url=number and f"https://www.gutenberg.org/ebooks/{number}", metadata=metadata
    )


def decode(data: bytes) -> str | None:
    """Return a text file's content with `\\n` for every line end, None if it holds zero bytes."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        return None
    else:
        text = _decode_bytes(data)
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\x1a", "").lstrip("\ufeff")


def _decode_bytes(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = _DECLARED.search(data[:20_000])
        name = (declared[1] or b"").decode().lower() if declared else ""
        try:
            return data.decode(_ENCODINGS.get(name, "cp1252"))
        except UnicodeDecodeError:  # cp1252 leaves five bytes undefined
            return data.decode("latin-1")


def split_header(text: str) -> tuple[str, str]:
    """Return Project Gutenberg's header and the text itself, without its footer and licence; other books whole."""
    if "gutenberg" not in text[:20_000].lower() and "gutenberg" not in text[-40_000:].lower():
        return "", text
    starts = list(_START.finditer(text))
    after = starts[0].end() if starts else 0
    end = _END.search(text, after) or _LATE_SMALL_PRINT.search(text, max(after, len(text) // 2))
    stop = end.start() if end else len(text)
    begin = max((match.end() for match in starts if match.end() <= min(stop, after + 40_000)), default=0)
    return text[:begin] or text[:3000], text[begin:stop]


def _metadata(header: str) -> dict[str, str | int]:
    metadata: dict[str, str | int] = {}
    for name, value in _FIELD.findall(header):
        metadata.setdefault(name.lower(), " ".join(value.split()))
    if "title" not in metadata and (opening := _OPENING.search(header)):
        metadata |= {"title": " ".join(opening[1].split()).strip(" *"), "author": " ".join(opening[2].split())}
    if number := _NUMBER.search(header):
        metadata["gutenberg"] = int(number[1])
    return metadata


def _without_credits(text: str) -> str:
    """Take out who prepared the file, among the first paragraphs."""
    pieces = re.split(r"\n(?:[ \t]*\n)+", text.lstrip("\n"), maxsplit=6)
    kept = [piece for piece in pieces[:-1] if not (_CREDIT.match(piece) and len(piece) < 600)]
    return "\n\n".join(kept + pieces[-1:])


def _without_markers(text: str) -> str:
    """Take out what the transcription added: illustrations' places, notes, page numbers, marks of italics."""
    parts, position = [], 0
    while match := _MARKER.search(text, position):
        parts.append(text[position : match.start()])
        position = _closing(text, match.start())
    text = "".join(parts) + text[position:]
    text = _PAGE.sub("", text)
    paragraphs, note = [], False
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text):
        heading, note = note, False
        if _NOTE.match(paragraph):
            note = len(paragraph.strip()) < 40  # what follows a bare heading is the note
        elif not heading:
            paragraphs.append(_BOLD.sub(r"\1", _ITALICS.sub(r"\1", paragraph)))
    return "\n\n".join(paragraphs)


def _closing(text: str, start: int) -> int:
    """Return where the bracket opened at `start` ends; one that is not closed within 2,000 characters, with its line."""
    depth = 0
    for match in re.compile(r"[\[\]]").finditer(text, start, start + 2000):
        depth += 1 if match[0] == "[" else -1
        if not depth:
            return match.end()
    end = text.find("\n", start)
    return len(text) if end < 0 else end
