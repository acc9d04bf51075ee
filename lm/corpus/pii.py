"""Personal data: e-mail addresses, public IP addresses and phone numbers become addresses that belong to nobody.

As FineWeb does (Penedo et al. 2024, arXiv:2406.17557: `email@example.com`, `firstname.lastname@example.org`), so a
model still learns what such things look like. Placeholders are from ranges set aside for documentation: RFC 2606
domains, RFC 5737 IPv4, RFC 3849 IPv6, 555-0100 to 555-0199 of the North American Numbering Plan. What occurs again in
the same document gets the same placeholder.

Precision before recall: a wrong match damages text. What is left alone: private and reserved addresses, version
numbers, ISBNs, dates, prices, bare runs of digits.
"""

import collections
import ipaddress
import re

from lm.corpus.record import Record

_EMAILS = ("email@example.com", "firstname.lastname@example.org", "name@example.net")
_IPV4 = tuple(f"{block}.{host}" for host in (17, 42, 101) for block in ("192.0.2", "198.51.100", "203.0.113"))
_IPV6 = tuple(f"2001:db8::{host:x}" for host in (0x17, 0x42, 0x101, 0x202))
_PHONES = tuple(f"202-555-01{number}" for number in (11, 23, 38, 47, 56, 64, 79, 82))

# RFC 5321: at most 64 characters before the @. The domain's last label is letters.
_AT_DOMAIN = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24}))(?![\w@-]|\.\w)")
_LOCAL_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_%+'-]|\.(?!\.)){0,63}$")
_NOT_DOMAINS = frozenset(["png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "js", "css", "html", "php", "py", "pdf"])
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|invalid|test|localhost)$", re.IGNORECASE)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4_ADDRESS = re.compile(rf"(?<![\w.])(?<![A-Za-z][/-]){_OCTET}(?:\.{_OCTET}){{3}}(?![\w]|\.\d|-[A-Za-z])")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:versions?|ver|v|rev|revision|release|build|firmware|driver|update|patch|section|clause|chapter)"
    r"|§)[\s.:#=(\"']*$",
    re.IGNORECASE,
)
# Global unicast addresses begin with 2 or 3 (RFC 4291): times, C++ names and MAC addresses do not come into question.
_IPV6_ADDRESS = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")

_NORTH_AMERICAN = r"(?:\+?1[-. ]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}"
_INTERNATIONAL = r"\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,7}"
_AREA_CODE = r"\(0\d{1,4}\) ?\d{3,4}[ \-]?\d{3,5}"
_PHONE = re.compile(
    rf"(?<![\w.+\-/=&?%$€£])(?:{_INTERNATIONAL}|{_NORTH_AMERICAN}|{_AREA_CODE})(?![\w%=]|[-.]\d|\) ?\d)"
)
# A number of any form right after a word that announces one.
_ANNOUNCED = re.compile(
    r"(?<![\w./])(?:tele(?:phone|fax)|tel|phone|ph|fax|mobile|cell(?:phone)?|whatsapp|hotline|call(?: (?:us|me|him|her|them|now))?"
    r"(?: (?:at|on))?)(?: ?(?:no|number|nr))?[.:#]{0,2} {0,2}"
    r"(?P<number>\+?\(?\d{1,5}\)?(?:[ .\-/]{1,2}\(?\d{2,5}\)?){1,5})(?![\w%]|[-.,:/]\d|\) ?\d)",
    re.IGNORECASE,
)
# National numbers of other countries begin with 0; a word before one that is this long makes it sure enough.
_NATIONAL = re.compile(
    r"\b(?:on|or|at|text|number)[:\-]? (?P<number>0\d{2,4} ?\d{3,4} ?\d{3,4})(?![\w%]|[-.,:/]\d)", re.IGNORECASE
)
_BOOK_NUMBER_BEFORE = re.compile(r"\b(?:ISBN|ISSN|DOI|SKU|EAN|UPC)(?:-1[03])?[\s:.#]*$", re.IGNORECASE)
_DATE = re.compile(
    r"(?:19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?|\d\d?[-./ ]\d\d?[-./ ](?:19|20)\d\d|(?:1[89]|20)\d\d ?- ?(?:1[89]|20)\d\d"
)
# Looked for first: they begin with a digit, which the regex engine finds fast, and most documents have neither.
_LIKE_IPV4 = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_LIKE_PHONE = re.compile(r"\d[\d ().\-/]{5,}\d")
_CONTEXT = 16  # characters before a number that may say what it is


class Pii:
    """The document step that replaces e-mail addresses, public IP addresses and phone numbers; rejects nothing."""

    name = "pii"

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()

    def __call__(self, record: Record) -> None:
        text = record.text
        if "@" in text:
            text = self._emails(text)
        if _LIKE_IPV4.search(text):
            text = self._each(_IPV4_ADDRESS, text, _is_public_ipv4, _IPV4, "IPv4 addresses")
        if ":" in text:
            text = self._each(_IPV6_ADDRESS, text, _is_public_ipv6, _IPV6, "IPv6 addresses")
        record.text = self._phones(text)

    def _each(self, pattern: re.Pattern, text: str, accept, placeholders: tuple[str, ...], name: str) -> str:
        seen: dict[str, str] = {}

        def replacement(match: re.Match) -> str:
            if not accept(match):
                return match[0]
            self.counts[name] += 1
            return _placeholder(match[0], placeholders, seen)

        return pattern.sub(replacement, text)

    def _emails(self, text: str) -> str:
        """Replace addresses, found from their @ on: a scan for one character, and few are tried."""
        seen: dict[str, str] = {}
        parts, done = [], 0
        for match in _AT_DOMAIN.finditer(text):
            before = text[max(done, match.start() - 64) : match.start()]
            local = _LOCAL_PART.search(before)
            if not local or match[2].lower() in _NOT_DOMAINS or _RESERVED.search(match[1]) or local[0] == "git":
                continue
            start = match.start() - len(local[0])
            parts += [text[done:start], _placeholder(local[0] + match[0], _EMAILS, seen)]
            done = match.end()
            self.counts["e-mail addresses"] += 1
        return "".join([*parts, text[done:]]) if parts else text

    def _phones(self, text: str) -> str:
        """Replace numbers in the lines that have one: the patterns are slow."""
        seen: dict[str, str] = {}

        def replacement(match: re.Match) -> str:
            number = match["number"] if "number" in match.re.groupindex else match[0]
            if not _is_phone(match, number):
                return match[0]
            self.counts["phone numbers"] += 1
            return match[0][: -len(number)] + _placeholder(re.sub(r"\D", "", number), _PHONES, seen)

        parts, done = [], 0
        for match in _LIKE_PHONE.finditer(text):
            if match.start() < done:
                continue
            start, stop = text.rfind("\n", done, match.start()) + 1 or done, text.find("\n", match.end())
            stop = len(text) if stop < 0 else stop
            line = text[start:stop]
            for pattern in (_PHONE, _ANNOUNCED, _NATIONAL):
                line = pattern.sub(replacement, line)
            parts += [text[done:start], line]
            done = stop
        return "".join([*parts, text[done:]]) if parts else text


def _placeholder(value: str, placeholders: tuple[str, ...], seen: dict[str, str]) -> str:
    return seen.setdefault(value.lower(), placeholders[len(seen) % len(placeholders)])


def _before(match: re.Match) -> str:
    return match.string[max(0, match.start() - _CONTEXT) : match.start()]


def _is_public_ipv4(match: re.Match) -> bool:
    """A host's address: not a version (`1.2.3.4`: single digits, a word before it), not a network (`….0`)."""
    octets = match[0].split(".")
    if all(len(octet) == 1 for octet in octets) or octets[0] == "0" or octets[3] == "0":
        return False
    address = ipaddress.IPv4Address(match[0])
    return address.is_global and not address.is_multicast and not _VERSION_BEFORE.search(_before(match))


def _is_public_ipv6(match: re.Match) -> bool:
    try:
        return ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False


def _is_phone(match: re.Match, number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    if number.count("(") != number.count(")") or number in _PHONES or _BOOK_NUMBER_BEFORE.search(_before(match)):
        return False
    if digits[-7:-2] == "55501":  # a placeholder already, or fiction
        return False
    if number.startswith("+"):  # E.164: at most 15 digits
        return (8 if re.search(r"\D", number[1:]) else 10) <= len(digits) <= 15
    return (10 if match.re is _NATIONAL else 7) <= len(digits) <= 15 and not _DATE.fullmatch(number)
