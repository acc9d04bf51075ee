"""Licences of code, by their SPDX names: from `SPDX-License-Identifier` lines and from phrases of their texts.

A GNU licence goes by its version alone (`GPL-2.0`): which of `-only` and `-or-later` holds is said in each file's
header, seldom in the text of the licence. Texts: spdx.org/licenses.
"""

import re
from collections.abc import Collection, Iterable

UNKNOWN = "unknown"
HEADER_CHARACTERS = 4096  # of a file, where its own licence would stand

_FILE = re.compile(r"(?:un)?licen[cs]es?(?:[-_.][\w.+-]*)?|copying(?:[-_.][\w.+-]*)?", re.IGNORECASE)
_NAMED = re.compile(r"[-_.](?!(?:txt|md|rst)$)[^.]*", re.IGNORECASE)  # `LICENSE-MIT`, not `LICENSE.txt`
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]*)")
_EXPRESSION = re.compile(r"\(*[A-Za-z0-9][\w.+-]*\)*(?:\s+(?:AND|OR|WITH)\s+\(*[A-Za-z0-9][\w.+-]*\)*)*")

# Phrases of texts in lower case, of which only letters, digits and dots are left.
_MIT = "permission is hereby granted free of charge to any person obtaining a copy of this software and associated"
_BSD = "redistribution and use in source and binary forms with or without modification are permitted provided that"
_ISC = "permission to use copy modify and(?: or)? distribute this software for any purpose with or without fee is"
_GNU = r"general public license (?:as published by the free software foundation )?(?:either )?version"
_MPL = "secondary license"  # which the Mozilla and Eclipse licences name, with versions
_FINGERPRINTS: tuple[tuple[str, str, str, str], ...] = (  # name, regex, another that must match, one that must not
    ("Apache-2.0", r"apache license version 2\.0|apache\.org licenses terms and conditions", "", ""),
    ("AGPL-3.0", rf"gnu affero {_GNU} 3", "", _MPL),
    ("LGPL-2.1", rf"gnu lesser {_GNU} 2\.1", "", _MPL),
    ("LGPL-2.0", rf"gnu library {_GNU} 2", "", _MPL),
    ("LGPL-3.0", rf"gnu lesser {_GNU} 3", "", _MPL),
    ("GPL-2.0", rf"(?<!ordinary )gnu {_GNU} 2", "", _MPL),
    ("GPL-3.0", rf"(?<!ordinary )gnu {_GNU} 3", "", _MPL),
    ("MPL-2.0", r"mozilla public license (?:version |v\. ?)?2\.0", "", ""),
    ("EPL-2.0", r"eclipse public license v(?:ersion)? 2\.0", "", ""),
    ("MIT", _MIT, "permission notice shall be included in all copies", ""),
    ("MIT-0", _MIT, "", "subject to the following conditions"),
    ("NCSA", _MIT, "redistributions of source code must retain the above", ""),
    ("BSD-4-Clause", _BSD, "advertising materials mentioning features", ""),
    ("BSD-3-Clause", _BSD, r"neither the names? of|name of .{0,80}may not be used to endorse", "advertising materials"),
    ("BSD-2-Clause", _BSD, "", r"neither the names? of|may not be used to endorse|advertising materials"),
    ("ISC", _ISC, "provided that the above copyright notice", ""),
    ("0BSD", _ISC, "", "provided that the above copyright notice"),
    ("Zlib", "altered source versions must be plainly marked as such", "", ""),
    ("BSL-1.0", r"boost software license version 1\.0", "", ""),
    ("BUSL-1.1", r"business source license 1\.1", "", ""),
    ("Unlicense", "this is free and unencumbered software released into the public domain", "", ""),
    ("CC0-1.0", r"cc0 1\.0 universal", "", ""),
    ("CC-BY-SA-4.0", r"attribution sharealike 4\.0 international", "", ""),
    ("CC-BY-4.0", r"(?:commons|license) attribution 4\.0 international|attribution 4\.0 international public", "", ""),
    ("Artistic-2.0", r"the artistic license 2\.0", "", ""),
    ("Python-2.0", "python software foundation license version 2", "", ""),
    ("WTFPL", "do what the fuck you want to public license", "", ""),
)
_COMPILED = [(name, *(re.compile(part) if part else None for part in rest)) for name, *rest in _FINGERPRINTS]


def is_license_file(name: str) -> bool:
    """True for `LICENSE`, `COPYING.txt`, `license-mit`, …; also for `license.py`, which a caller tells apart."""
    return _FILE.fullmatch(name) is not None


def license_of_text(text: str) -> str | None:
    """Return the licence that a text is or grants, `A AND B` if it holds several; None: none that is known here."""
    normal = re.sub(r"[^a-z0-9.]+", " ", text.lower().replace("licence", "license"))
    found = []
    for name, phrase, required, forbidden in _COMPILED:
        match = phrase.search(normal)
        if match and (not required or required.search(normal)) and not (forbidden and forbidden.search(normal)):
            found.append((match.start(), name))
    return " AND ".join(name for _, name in sorted(found)) or None


def license_of_header(text: str) -> str | None:
    """Return the licence that a source file names in its first lines, as an SPDX expression; None: none."""
    header = text[:HEADER_CHARACTERS]
    if (tag := _SPDX.search(header)) and (expression := _EXPRESSION.match(tag[1].strip())):
        return without_suffix(expression[0])
    found = license_of_text(header) if re.search("[Ll]icen[cs]e|[Pp]ermission|[Rr]edistribution", header) else None
    return found if found and found.count(" AND ") < 2 else None  # of more it only speaks


def without_suffix(expression: str) -> str:
    """Return an SPDX expression with its GNU licences by version alone: `GPL-2.0` for `GPL-2.0-or-later`."""
    return re.sub(r"(GPL-\d\.\d)(?:-only|-or-later|\+)", r"\1", expression)


def license_of_folder(files: Iterable[tuple[str, str]]) -> str:
    """Return the licence of a folder that holds licence files, given as (name, text).

    `LICENSE-MIT` beside `LICENSE-APACHE` is a choice, without another licence file or with one that says "either";
    other licences side by side all hold.
    """
    found = [(name, license_of_text(text) or UNKNOWN, "either" in text.lower()) for name, text in sorted(files)]
    named = [license for name, license, _ in found if _NAMED.search(name)]
    choice = len(named) > 1 and all(
        _NAMED.search(name) or (license == UNKNOWN and either) for name, license, either in found
    )
    names = dict.fromkeys(named if choice else [license for _, license, _ in found])
    return (" OR " if choice else " AND ").join(
        name if len(names) == 1 or " AND " not in name else f"({name})" for name in names
    )


def accepted(expression: str, licenses: Collection[str]) -> bool:
    """True if code under an SPDX expression may be used by who accepts these licences.

    Of `A OR B` one must be among them, of `A AND B` both; in an expression with parentheses, all.
    """
    expression = re.sub(r"\s+WITH\s+[\w.+-]+", "", expression)
    if "(" in expression:
        return all(name in licenses for name in re.findall(r"[\w.+-]+", expression) if name not in ("AND", "OR"))
    return any(all(name.strip() in licenses for name in choice.split(" AND ")) for choice in expression.split(" OR "))
