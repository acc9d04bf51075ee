r"""Wikitext rendered as plain text: what a reader of the article reads, without apparatus.

Templates, links and tables are matched by one pass over the text with a stack, as MediaWiki's own preprocessor does
it, and rendered as they close; then tags, quotes and lines follow by regular expressions that are linear in the text.
No library parses it: mwparserfromhell takes four times as long for a tree of which little is needed
(`experiments/benchmarks/wikitext.py`), and on unbalanced pages time that grows with the square of their length; here
it is at most `_DEPTH` times the length.

Characters that no page needs are marks on the way: `LITERAL` around the number of a piece to be kept as it is
(`nowiki`, code, mathematics), `DROPPED` where a template was left out, `CITED` where that was a citation, `BREAK` for
a line break that is meant.
"""

import collections
import html
import re

from lm.corpus.readers.wiki_lines import BREAK, CITED, DROPPED, LITERAL, lay_out
from lm.corpus.readers.wiki_names import CATEGORY, FILE, LANGUAGES, disambiguation, redirect_target
from lm.corpus.readers.wiki_templates import render_template
from lm.corpus.record import Record, Rejection

_DEPTH = 60  # nesting beyond which brackets are no longer matched; MediaWiki stops at 100, articles at about 10
_MARKS = str.maketrans(dict.fromkeys((LITERAL, DROPPED, CITED, BREAK, "\r", "\u200b", "\ufeff")))

# Elements whose content is no wikitext.
_KEPT = {"nowiki", "math", "chem", "ce", "code", "pre", "source", "syntaxhighlight"}
_GONE = {"ref", "gallery", "timeline", "imagemap", "score", "graph", "mapframe", "maplink", "templatedata", "hiero",
         "inputbox", "categorytree", "includeonly", "charinsert", "dynamicpagelist", "references", "style"}  # fmt: skip
_BLOCKS = {"pre", "source", "syntaxhighlight"}
_ELEMENT = re.compile(
    rf"<!--|<({'|'.join(sorted(_KEPT | _GONE, key=len, reverse=True))})(?=[\s/>])([^<>]*)>", re.IGNORECASE
)
_OPEN_REFERENCE = re.compile(r"<ref(?=[\s>])[^<>]*(?<!/)>", re.IGNORECASE)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _KEPT | _GONE}

_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\||^[ \t:*#;]*\{\||<table\b[^<>]*>|</table\s*>", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(r"\{\{\{[^{}|]*(?:\|([^{}]*))?\}\}\}")
_NO_TITLE = re.compile(r"[\[\]{}<>\n]")
_POWER = re.compile(r"<sup\b[^<>]*>\s*([-−+]?(?:\d+|[a-z]))\s*</sup\s*>", re.IGNORECASE)
_LINE_TAG = re.compile(r"<(?:br|hr)\b[^<>]*>|</br\s*>", re.IGNORECASE)
_BLOCK_TAG = re.compile(r"</?(?:p|div|blockquote|center|h[1-6]|ul|ol|dl|poem)\b[^<>]*>", re.IGNORECASE)
_ITEM_TAG = re.compile(r"<(?:li|dt|dd)\b[^<>]*>", re.IGNORECASE)
_POEM = re.compile(r"<poem\b[^<>]*>([^<]*(?:<(?!/?poem\b)[^<]*)*)</poem\s*>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:abbr|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|li|dt|dd|mark|noinclude|nowiki|onlyinclude|q|rb|rp|rt|ruby|s|samp|"
    r"section|small|span|strike|strong|sub|sup|tt|u|var|wbr|references|ref|templatestyles|translate|languages|tvar|gallery|math|chem|"
    r"ce|pre|source|table|tbody|thead|tr|td|th|caption|includeonly|indicator|timeline|imagemap|score|syntaxhighlight)\b[^<>]*>",
    re.IGNORECASE,
)
_EXTERNAL = re.compile(
    r"\[(?:(?:https?|ftps?|irc|news|git|svn|telnet|gopher)://|//|mailto:)[^\s\[\]<>\"]+(?:[ \t]+([^\]\n]{0,500}))?\]",
    re.IGNORECASE,
)
_MARK = re.compile(rf"{LITERAL}(\d+){LITERAL}")
_CITATION = re.compile(r"\s*v?cit(?:e\b|ation\s*$)", re.IGNORECASE)
_SWITCH = re.compile(r"__[A-Z]{3,}__")


class Wikitext:
    """Document step: a page's wikitext becomes plain text.

    Rejects `wikipedia/redirect`, `wikipedia/namespace`, `wikipedia/model` (marked by the reader), and
    `wikipedia/disambiguation` and `wikipedia/empty`.
    """

    name = "wikipedia"

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()

    def __call__(self, record: Record) -> Rejection | None:
        """Render one record in place."""
        if drop := record.metadata.get("drop"):
            return Rejection(f"{self.name}/{drop['rule']}", drop["value"])
        if (target := redirect_target(record.text)) is not None:
            return Rejection(f"{self.name}/redirect", target)
        if mark := disambiguation(record.text):
            return Rejection(f"{self.name}/disambiguation", mark)
        text = render(record.text, record.metadata.get("title", ""), self.counts)
        if not text:
            return Rejection(f"{self.name}/empty")
        record.text = text
        return None


def render(text: str, title: str = "", counts: collections.Counter[str] | None = None) -> str:
    """Return what a page's wikitext reads as.

    Headings, paragraphs and lists are lines; links and formatted words leave their text; files, categories, tables,
    references and most templates leave nothing, nor do sections of references and links, nor empty ones.

    Args:
      text: wikitext, of any quality: unbalanced brackets cost no more than what stands between them.
      title: the page's.
      counts: raised by what was left out: `templates`, `tables`, `references`, `files`.
    """
    counts = counts if counts is not None else collections.Counter()
    literals: list[str] = []
    text = _set_aside(text.translate(_MARKS), literals, counts)
    if "{{{" in text:
        text = _PARAMETER.sub(lambda match: match[1] or "", text)
    text = _Brackets(title, counts).render(text)
    text = _without_tags(text)
    text = html.unescape(lay_out(text))
    text = text.replace("\xa0", " ").replace("\u2009", " ").replace("\u202f", " ").replace("\xad", "")
    text = _MARK.sub(lambda match: literals[int(match[1])], text)
    return text.translate(_MARKS).strip()


def _set_aside(text: str, literals: list[str], counts: collections.Counter[str]) -> str:
    """Take out comments and elements that are no wikitext; those to be kept leave a mark and stand in `literals`."""
    parts, position = [], 0
    closings: dict[str, re.Match[str] | None] = {}  # the next of each name, None: there is none
    while match := _ELEMENT.search(text, position):
        parts.append(text[position : match.start()])
        position = match.end()
        if match[1] is None:
            end = text.find("-->", position)
            position = len(text) if end < 0 else end + 3
            continue
        name = match[1].lower()
        if match[2].endswith("/"):
            counts["references"] += name == "ref"
            continue
        closing = closings.get(name, match)
        if closing is not None and closing.start() < position:
            closing = closings[name] = _CLOSING[name].search(text, position)
        if closing is None or (name == "ref" and _OPEN_REFERENCE.search(text, position, closing.start())):
            continue  # never closed: the closing tag, if any, is the next one's
        content = text[position : closing.start()]
        position = closing.end()
        counts["references"] += name == "ref"
        if name in _KEPT:
            literals.append(_literal(name, content))
            mark = f"{LITERAL}{len(literals) - 1}{LITERAL}"
            parts.append(f"\n\n{mark}\n\n" if name in _BLOCKS and "\n" in content.strip() else mark)
    parts.append(text[position:])
    return "".join(parts)


def _literal(name: str, content: str) -> str:
    if name in ("math", "chem", "ce"):
        content = " ".join(content.split())
        return f"${content}$" if content else ""
    if name in ("source", "syntaxhighlight"):
        return content.strip("\n")
    if name == "pre":
        content = re.sub(r"</?nowiki\s*/?>", "", content)
        return html.unescape(content.strip("\n"))
    if name == "code":  # wikitext, but for its quotes and braces it is mostly meant as it stands
        content = re.sub(r"</?nowiki\s*/?>|'{2,3}(?=\w)|(?<=\w)'{2,3}", "", content)
        content = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", _TAG.sub("", content))
    return html.unescape(content)


class _Frame:
    """An open bracket: what it is, and what has been read since, cut at its own `|`."""

    __slots__ = ("arguments", "kind")

    def __init__(self, kind: str):
        self.kind = kind
        self.arguments: list[list[str]] = [[]]

    def add(self, text: str) -> None:
        if text:
            self.arguments[-1].append(text)

    def strings(self) -> list[str]:
        return ["".join(argument) for argument in self.arguments]


_OPENING = {"}}": "{{", "]]": "[[", "|}": "{|", "</table": "<table"}


class _Brackets:
    """Matches brackets and renders what they hold, innermost first."""

    def __init__(self, title: str, counts: collections.Counter[str]):
        self._title, self._counts = title, counts
        self._frames = [_Frame("")]

    def render(self, text: str) -> str:
        frames, position = self._frames, 0
        while match := _TOKEN.search(text, position):
            token, start, position = match[0], match.start(), match.end()
            top = frames[-1]
            top.add(text[match.pos : start])
            if token == "|":
                if top.kind == "{|" and text.startswith("}", position) and _starts_line(text, start):
                    position += 1
                    self._close("|}")
                elif top.kind in ("{{", "[["):
                    top.arguments.append([])
                else:
                    top.add("|")
            elif token in ("{{", "[["):
                self._open(token)
            elif token == "}}":
                self._close("}}")
            elif token == "]]":
                if top.kind == "[[" and text.startswith("]", position) and _open_bracket(top):
                    top.add("]")  # [[File:…|… [http://… label]]]
                    position = start + 3
                self._close("]]")
            elif token.endswith("{|"):
                if text.startswith("}", position):  # {|}} is a parameter {, as in {{1|{|}}
                    top.add(token[:-1])
                    position -= 1
                else:
                    self._open("{|")
            elif token.startswith("</"):
                self._close("</table")
            else:
                self._open("<table")
        frames[-1].add(text[position:])
        while len(frames) > 1:
            self._give_up()
        return "".join(frames[0].arguments[0])

    def _open(self, kind: str) -> None:
        if len(self._frames) < _DEPTH:
            self._frames.append(_Frame(kind))

    def _close(self, closing: str) -> None:
        """Close the innermost bracket of this kind; those within it were never closed. Alone, it is left out."""
        kind = _OPENING[closing]
        if not any(frame.kind == kind for frame in self._frames):
            return
        while self._frames[-1].kind != kind:
            self._give_up()
        frame = self._frames.pop()
        if kind == "{{":
            arguments = frame.strings()
            shown = render_template(arguments, self._title)
            if shown is None:
                self._counts["templates"] += 1
                shown = CITED if _CITATION.match(arguments[0]) else DROPPED
            self._frames[-1].add(shown)
        elif kind == "[[":
            self._frames[-1].add(self._link(frame.strings()))
        else:
            self._counts["tables"] += 1

    def _give_up(self) -> None:
        """What is in a bracket that is never closed is text, but for the first line of a table or a file's link."""
        frame = self._frames.pop()
        text = "|".join(frame.strings())
        if frame.kind == "{|" or (frame.kind == "[[" and text.partition(":")[0].strip().lower() in FILE):
            text = text.partition("\n")[2]
        self._frames[-1].add(text)

    def _link(self, arguments: list[str]) -> str:
        target = arguments[0].strip()
        prefix, colon, _ = target.partition(":")
        if colon and prefix:
            prefix = prefix.strip().lower()
            if prefix in FILE and prefix != "media":
                self._counts["files"] += 1
                return DROPPED
            if prefix in CATEGORY or (prefix in LANGUAGES and len(arguments) == 1):
                return DROPPED
        if _NO_TITLE.search(target):
            return "|".join(arguments)
        if "://" in target:  # [[http://… label]]: one bracket too many
            return target.partition(" ")[2] or DROPPED
        label = "|".join(arguments[1:]).strip() if len(arguments) > 1 else ""
        return label or target.strip(": ")


def _starts_line(text: str, position: int) -> bool:
    line = text.rfind("\n", max(0, position - 50), position)
    return line >= 0 and not text[line:position].strip()


def _open_bracket(frame: _Frame) -> bool:
    text = "".join(frame.arguments[-1])
    return text.count("[") > text.count("]")


def _without_tags(text: str) -> str:
    if "<" in text:
        text = _POEM.sub(lambda match: "\n\n" + match[1].strip("\n").replace("\n", BREAK) + "\n\n", text)
        text = _POWER.sub(r"^\1", text)
        text = _LINE_TAG.sub(BREAK, text)
        text = _BLOCK_TAG.sub("\n\n", text)
        text = _ITEM_TAG.sub("\n* ", text)
        text = _TAG.sub("", text)
    text = _EXTERNAL.sub(lambda match: match[1] or DROPPED, text)
    return _SWITCH.sub("", text)
