"""MediaWiki's XML dumps: a record per page, its text still wikitext.

Every page of the dump becomes a record, so that pages can be counted; one that is not to be trained on carries
`metadata["drop"] = {"rule", "value"}` and is rejected as `wikipedia/RULE` by the step that renders wikitext
(`lm.corpus.readers.wikitext`): `redirect` (value: where to), `namespace` (which), `model` (what the page holds instead
of wikitext). Other namespaces' text is left out of the record. Disambiguation pages are the renderer's to find.

Read with the standard library's expat, not with mwxml 0.3: that stops at the first element that it does not know, and
the schema and extensions of MediaWiki add some; expat alone is also 1.4 times as fast.
"""

import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lm.corpus.config import SourceConfig
from lm.corpus.readers.inputs import name_of
from lm.corpus.readers.opening import open_input
from lm.corpus.readers.wiki_names import redirect_target
from lm.corpus.readers.wikitext import Wikitext
from lm.corpus.record import Record
from lm.errors import DamagedFileError

_CHUNK = 1 << 16


def read(path: str, source: SourceConfig, skip: Callable[[str, str], None]) -> Iterator[Record]:
    """Yield the pages of a dump, the last revision of each, in their order.

    Ids are `enwiki/Alan Turing`: the wiki's database name and the page's title. Dumps come in the order of page ids; a
    page that is out of it, as those that stand there twice, is `enwiki/Alan Turing#ORDINAL` in the file. Metadata: `title`, `page`, `namespace`,
    `revision`, `timestamp`, `drop`. Memory is bounded by one revision.

    Args:
      path: XML in any encoding that it declares, compressed or not, local or a URL.
      source: `namespaces`: those whose pages are kept.
      skip: told of pages without a title, id, revision or namespace.

    Raises:
      UsageError, LmError: as `open_input`.
      DamagedFileError: truncated, or broken XML; all pages before have been yielded.
    """
    with open_input(path) as stream:
        site = _Site()
        last, highest, ordinal = None, -1, 0
        try:
            for element in _elements(stream):
                if _name(element) == "siteinfo":
                    site = _Site(element)
                    continue
                page = _page(element, site, source.namespaces)
                if page is None:
                    skip(
                        f"{name_of(path, source)}: {element.findtext('{*}title') or 'page'}",
                        "it has no title, id, revision or namespace",
                    )
                    continue
                ordinal += 1
                if page.metadata["page"] <= highest:
                    page.id += f"#{ordinal}"
                highest = max(highest, page.metadata["page"])
                last = page.id
                yield page
        except ElementTree.ParseError as error:
            after = f"after page {last}" if last else "before its first page"
            raise DamagedFileError(
                f'"{path}" is damaged {after}: broken XML, {error}. Get it again; a dump ends with </mediawiki>.'
            ) from error


class _Site:
    """What a dump says of its wiki."""

    def __init__(self, siteinfo: ElementTree.Element | None = None):
        def text(name: str) -> str:
            return (siteinfo.findtext("{*}" + name) or "").strip() if siteinfo is not None else ""

        self.base = re.sub(r"[^/=]*$", "", text("base"))  # of the main page, without its title
        host = urllib.parse.urlsplit(self.base).hostname
        self.name = text("dbname") or host or "wiki"
        entries = siteinfo.iterfind("{*}namespaces/{*}namespace") if siteinfo is not None else ()
        self.namespaces = {(entry.text or "").lower(): int(entry.get("key", "0")) for entry in entries}

    def namespace(self, page: ElementTree.Element, title: str) -> int | None:
        """Return a page's namespace: given, or by its title in dumps before export-0.6; None if it is no number."""
        given = page.findtext("{*}ns")
        if given is not None:
            return int(given) if re.fullmatch(r"\s*-?\d+\s*", given) else None
        return self.namespaces.get(title.partition(":")[0].lower(), 0) if ":" in title else 0

    def url(self, title: str) -> str | None:
        return self.base + urllib.parse.quote(title.replace(" ", "_"), safe="/:@!$*(),;'") if self.base else None


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _elements(stream: BinaryIO) -> Iterator[ElementTree.Element]:
    """Yield `siteinfo` and each `page` with its last revision; what has been yielded is forgotten."""
    parser = ElementTree.XMLPullParser(("start", "end"))
    path: list[ElementTree.Element] = []
    while True:
        chunk = stream.read(_CHUNK)
        if chunk:
            parser.feed(chunk)
        else:
            parser.close()
        for event, element in parser.read_events():
            if event == "start":
                path.append(element)
                continue
            path.pop()
            name = _name(element)
            if len(path) == 1:
                if name in ("siteinfo", "page"):
                    yield element
                path[0].clear()
            elif len(path) == 2 and name == "revision":
                for older in path[1].findall("{*}revision")[:-1]:
                    path[1].remove(older)
        if not chunk:
            return


def _page(page: ElementTree.Element, site: _Site, namespaces: tuple[int, ...]) -> Record | None:
    title, number, revision = page.findtext("{*}title") or "", page.findtext("{*}id"), page.find("{*}revision")
    namespace = site.namespace(page, title)
    if not title or revision is None or namespace is None or not (number or "").isdecimal():
        return None
    text = revision.findtext("{*}text") or ""
    metadata: dict[str, Any] = {"title": title, "page": int(number), "namespace": namespace}
    if (identity := revision.findtext("{*}id") or "").isdecimal():
        metadata["revision"] = int(identity)
    if timestamp := revision.findtext("{*}timestamp"):
        metadata["timestamp"] = timestamp
    marked = page.find("{*}redirect")
    model = revision.findtext("{*}model") or revision.findtext("{*}content/{*}model") or "wikitext"
    target = redirect_target(text) if marked is None else marked.get("title", "")
    if target is not None:
        metadata["drop"] = {"rule": "redirect", "value": target}
    elif namespace not in namespaces:
        metadata["drop"], text = {"rule": "namespace", "value": namespace}, ""
    elif model != "wikitext":
        metadata["drop"] = {"rule": "model", "value": model}
    return Record(f"{site.name}/{title}", text, url=site.url(title), metadata=metadata)


def steps(source: SourceConfig) -> list[Wikitext]:
    """Return the steps that documents of the reader `wikipedia` pass first."""
    return [Wikitext()]
