"""Folders and archives of code become files with language and licence, and what nobody wrote is told from the rest."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest

from lm.corpus.config import SourceConfig
from lm.corpus.readers import code, find_reader, opening
from lm.corpus.readers.languages import language_of
from lm.corpus.readers.licenses import accepted, license_of_header, license_of_text
from lm.errors import DamagedFileError

MIT = """MIT License

Copyright (c) 2020 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.
"""
BSD = """Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:
1. Redistributions of source code must retain the above copyright notice.
"""
BSD_3 = BSD + "3. Neither the name of the copyright holder nor the names of its contributors may be used."
APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
GPL_2 = "GNU GENERAL PUBLIC LICENSE\n   Version 2, June 1991\n"
PYTHON = "def area(width, height):\n    return width * height\n"
FILES = {
    "repo/LICENSE": MIT.encode(),
    "repo/a.py": PYTHON.encode(),
    "repo/gpl/COPYING": GPL_2.encode(),
    "repo/gpl/deep/b.c": b"int main(void) { return 0; }\n",
    "repo/gpl/deep/own.c": b"// SPDX-License-Identifier: BSD-3-Clause\nint x;\n",
    "repo/.git/config": b"[core]\n",
    "repo/image.png": b"\x89PNG\r\n\x1a\n\x00\x00",
}


def write_folder(root, files) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def tar_bytes(files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_bytes(files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


ARCHIVES = {
    "r.tar": tar_bytes,
    "r.tgz": lambda files: gzip.compress(tar_bytes(files)),
    "r.tar.zst": lambda files: zstd(tar_bytes(files)),
    "r.zip": zip_bytes,
}


def read(path, **fields):
    """Return records by their path inside, and what was skipped (where, reason)."""
    skipped = []
    source = SourceConfig(reader="code", paths=(str(path),), **fields)
    records = list(code.read(str(path), source, lambda *found: skipped.append(found)))
    assert len({found.id for found in records}) == len(records)
    return {found.metadata["path"]: found for found in records}, skipped


@pytest.mark.parametrize("kind", ["folder", *ARCHIVES])
def test_a_repository_is_read_the_same_from_a_folder_and_from_every_archive(tmp_path, kind):
    if kind == "folder":
        path, prefix = write_folder(tmp_path / "r", FILES), "r"
    else:
        path, prefix = tmp_path / kind, kind
        path.write_bytes(ARCHIVES[kind](FILES))
    records, skipped = read(path)
    assert skipped == []
    assert sorted(records) == sorted(name for name in FILES if ".git/" not in name)
    assert records["repo/a.py"].id == f"{prefix}/repo/a.py"
    assert records["repo/a.py"].text == PYTHON
    assert {name: found.metadata.get("license") for name, found in records.items()} == {
        "repo/LICENSE": "MIT",
        "repo/a.py": "MIT",
        "repo/gpl/COPYING": "GPL-2.0",
        "repo/gpl/deep/b.c": "GPL-2.0",  # the nearest licence upwards
        "repo/gpl/deep/own.c": "BSD-3-Clause",  # its own
        "repo/image.png": None,
    }
    assert records["repo/a.py"].metadata["language"] == "Python"
    assert records["repo/image.png"].metadata["binary"] and not records["repo/image.png"].text


def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "MAX_FILE_BYTES", 1000)
    files = {"large.py": b"x = 1\n" * 200, "latin.py": b"# caf\xe9\n", "ok.py": b"x = 1\n"}
    for path in (write_folder(tmp_path / "f", files), tmp_path / "a.tar", tmp_path / "a.zip"):
        if str(path).endswith((".tar", ".zip")):
            path.write_bytes(ARCHIVES["r" + path.suffix](files))
        records, skipped = read(path)
        assert list(records) == ["ok.py"]
        name = os.path.basename(path)
        assert skipped == [
            (f"{name}/large.py", "1,200 bytes, more than 1,000"),
            (f"{name}/latin.py", "not UTF-8 at byte 5"),
        ]


def test_links_are_not_followed_and_nothing_is_read_outside(tmp_path):
    (tmp_path / "secret.py").write_text("x = 1\n")
    write_folder(tmp_path / "f", {"a.py": b"x = 1\n"})
    os.symlink(tmp_path / "secret.py", tmp_path / "f" / "link.py")
    os.symlink(tmp_path, tmp_path / "f" / "up")
    assert list(read(tmp_path / "f")[0]) == ["a.py"]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "f", "f")
    assert list(read(tmp_path / "a.tar")[0]) == ["f/a.py"]


def test_a_name_that_stands_twice_in_an_archive_is_read_once(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.py": b"1\n"})[:1024] + tar_bytes({"a.py": b"2\n", "b.py": b"3\n"}))
    records, skipped = read(tmp_path / "a.tar")
    assert {name: found.text for name, found in records.items()} == {"a.py": "1\n", "b.py": "3\n"}
    assert len(skipped) == 1 and "more than once" in skipped[0][1]


MANY = {f"f{number}.py": os.urandom(300).hex().encode() + b"\n" for number in range(200)}


@pytest.mark.parametrize("damage", ["truncated", "truncated gz", "bit flipped", "no end"])
def test_a_damaged_tar_yields_what_comes_before_and_says_so(tmp_path, damage):
    content = tar_bytes({"LICENSE": MIT.encode(), **MANY})
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "truncated gz":
        content = gzip.compress(content)[:-20_000]
    elif damage == "no end":
        content = content[: content.rindex(b"\n") // 512 * 512 + 512]
    else:
        at = 512 * (2 + 3 * 100)  # the header of a member in the middle: tarfile would end there, silently
        content = content[: at + 100] + b"?" + content[at + 101 :]
    (tmp_path / "a.tar").write_bytes(content)
    records = []
    source = SourceConfig(reader="code", paths=(str(tmp_path / "a.tar"),))
    with pytest.raises(DamagedFileError, match="a.tar"):
        records.extend(code.read(str(tmp_path / "a.tar"), source, lambda *_: None))
    assert 50 < len(records) <= 201
    assert all(found.metadata["license"] == "MIT" for found in records)


def test_damaged_and_wrong_archives_are_errors(tmp_path):
    content = zip_bytes({"a.py": PYTHON.encode() * 20})
    at = content.index(b"a.py") + 10
    for name, bytes_ in {
        "cut.zip": content[:-30],
        "crc.zip": content[:at] + b"\xff\xff" + content[at + 2 :],
        "no.tar": b"hello\n" * 200,
        "no.tar.gz": gzip.compress(b"hello\n" * 200),
    }.items():
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(DamagedFileError, match=name):
            read(tmp_path / name)


def test_bombs_are_refused(tmp_path, monkeypatch):
    for module in (code, opening):
        monkeypatch.setattr(module, "EXPANSION_FLOOR", 1 << 20)
    zeros = {f"{number}.py": b"0" * (1 << 19) for number in range(20)}
    for name, content in {"a.zip": zip_bytes(zeros), "a.tar.gz": gzip.compress(tar_bytes(zeros))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedFileError, match="bomb"):
            read(tmp_path / name)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33  # tarfile reads such a header whole
    (tmp_path / "h.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    with pytest.raises(DamagedFileError, match="header"):
        read(tmp_path / "h.tar")


def test_a_single_file_is_a_repository_of_one(tmp_path):
    (tmp_path / "a.py").write_text(PYTHON)
    records, _ = read(tmp_path / "a.py", license="MIT")
    assert records["a.py"].id == "a.py" and records["a.py"].metadata["license"] == "MIT"


LONG_PROSE = "A paragraph of a manual. " * 100
VERDICTS = {
    ("a.py", PYTHON): None,
    ("vendored_by_us.py", PYTHON): None,
    ("README.md", f"# Manual\n\n{LONG_PROSE}\n"): None,  # long lines are prose
    ("config.json", '{"name": "area", "version": 1}\n'): None,
    ("run", "#!/usr/bin/env python3\nprint(1)\n"): None,
    ("late.py", "x = 1\n" * 30 + "# do not edit\n"): None,
    ("vendor/a.go", "package a\n"): "code/vendored",
    ("web/node_modules/x/index.js", "module.exports = 1\n"): "code/vendored",
    ("a.pb.go", "package a\n"): "code/generated",
    ("Cargo.lock", "[[package]]\n"): "code/generated",
    ("package-lock.json", "{}\n"): "code/generated",
    ("a.go", "// Code generated by protoc-gen-go. DO NOT EDIT.\npackage a\n"): "code/generated",
    ("b.py", "# @generated by a tool\nx = 1\n"): "code/generated",
    ("LICENSE", MIT): "code/unknown language",
    ("data.json", "[" + "1,\n" * 4000 + "1]\n"): "code/data",
    ("plot.svg", "<svg>\n" + "<path/>\n" * 1000): "code/data",
    ("a.js", "x=1;" * 300): "code/minified",  # one line beyond 1,000 characters
    ("b.js", ("y" * 110 + "\n") * 5): "code/minified",  # lines beyond 100 in the mean
    ("c.c", "{}();//**\n" * 50): "code/minified",  # hardly a letter
    ("d.min.js", "var a = 1;\n"): "code/minified",
    ("empty.py", " \n"): "code/empty",
}


@pytest.mark.parametrize(("name", "text"), VERDICTS)
def test_each_rule_drops_what_it_is_for_and_nothing_else(tmp_path, name, text):
    write_folder(tmp_path / "vendor", {name: text.encode()})  # a folder above the repository does not count
    (step,) = find_reader("code").steps(SourceConfig(reader="code"))
    (found,) = read(tmp_path / "vendor")[0].values()
    rejection = step(found)
    assert (rejection.rule if rejection else None) == VERDICTS[name, text]


def test_licenses_that_are_not_asked_for_are_counted_as_a_rule(tmp_path):
    write_folder(tmp_path / "r", FILES | {"free/c.py": PYTHON.encode()})
    source = SourceConfig(reader="code", licenses=("MIT", "BSD-3-Clause"))
    (step,) = find_reader("code").steps(source)
    verdicts = {name: step(found) for name, found in read(tmp_path / "r")[0].items() if name.endswith((".py", ".c"))}
    assert {name for name, found in verdicts.items() if not found} == {"repo/a.py", "repo/gpl/deep/own.c"}
    assert (verdicts["repo/gpl/deep/b.c"].rule, verdicts["repo/gpl/deep/b.c"].value) == ("code/license", "GPL-2.0")
    (step,) = find_reader("code").steps(SourceConfig(reader="code", licenses=("GPL-2.0-or-later",)))
    assert step(read(tmp_path / "r")[0]["repo/gpl/deep/b.c"]) is None
    assert (verdicts["free/c.py"].rule, verdicts["free/c.py"].value) == ("code/license", "unknown")


def test_a_choice_of_licence_files_is_a_choice_and_several_otherwise_all_hold(tmp_path):
    write_folder(
        tmp_path / "rust", {"LICENSE-MIT": MIT.encode(), "LICENSE-APACHE": APACHE.encode(), "a.rs": b"fn a() {}\n"}
    )
    assert read(tmp_path / "rust")[0]["a.rs"].metadata["license"] == "Apache-2.0 OR MIT"
    either = b"This is available under either of the licenses in LICENSE.BSD and LICENSE.MIT.\n"
    write_folder(
        tmp_path / "py", {"LICENSE": either, "LICENSE.BSD": BSD.encode(), "LICENSE.MIT": MIT.encode(), "a.py": b""}
    )
    assert read(tmp_path / "py")[0]["a.py"].metadata["license"] == "BSD-2-Clause OR MIT"
    files = {"LICENSE.txt": MIT.encode(), "LICENSE-BUNDLED": BSD.encode(), "a.py": b""}
    write_folder(tmp_path / "bundled", files)
    assert read(tmp_path / "bundled")[0]["a.py"].metadata["license"] == "BSD-2-Clause AND MIT"
    files = {"LICENSE": MIT.encode(), "COPYING": b"All rights reserved.\n", "license.py": b"x = 1\n"}
    write_folder(tmp_path / "both", files)
    records, _ = read(tmp_path / "both", license="MIT")
    assert records["license.py"].metadata["license"] == "unknown AND MIT"  # what says something else is not overruled


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT, "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD_3, "BSD-3-Clause"),
        (APACHE, "Apache-2.0"),
        ("# Licensed under the Apache License, Version 2.0 (the \"License\");", "Apache-2.0"),
        (GPL_2, "GPL-2.0"),
        ("GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007", "GPL-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE Version 2.1, February 1999", "LGPL-2.1"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE Version 3, 19 November 2007", "AGPL-3.0"),
        ('Mozilla Public License 2.0\n"Secondary License" means GNU General Public License, Version 2.0', "MPL-2.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE Version 2.1\nordinary GNU General Public License, version 2", "LGPL-2.1"),
        ("Boost Software License - Version 1.0 - August 17th, 2003", "BSL-1.0"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("Creative Commons Legal Code\n\nCC0 1.0 Universal", "CC0-1.0"),
        (MIT + "\n" + APACHE, "MIT AND Apache-2.0"),
        ("Copyright 2020. All rights reserved.", None),
    ],
)  # fmt: skip
def test_licences_are_known_by_their_texts(text, name):
    assert license_of_text(text) == name
    commented = "\n".join(" * " + line for line in text.splitlines())
    assert license_of_text(commented) == name


def test_licences_of_headers():
    assert license_of_header("/* SPDX-License-Identifier: GPL-2.0-or-later WITH Linux-syscall-note */") == (
        "GPL-2.0 WITH Linux-syscall-note"
    )
    assert license_of_header("# SPDX-License-Identifier: (MIT OR Apache-2.0)\n") == "(MIT OR Apache-2.0)"
    under = "// the GNU General Public License as published by\n// the Free Software Foundation; either version 2 of"
    assert license_of_header(under) == "GPL-2.0"
    assert license_of_header(PYTHON) is None


@pytest.mark.parametrize(
    ("expression", "licenses", "expected"),
    [
        ("MIT", ("MIT",), True),
        ("MIT", ("Apache-2.0",), False),
        ("GPL-2.0 OR MIT", ("MIT",), True),
        ("GPL-2.0 AND MIT", ("MIT",), False),
        ("GPL-2.0 AND MIT OR ISC", ("ISC",), True),
        ("GPL-2.0 WITH Classpath-exception-2.0", ("GPL-2.0",), True),
        ("(MIT OR GPL-2.0) AND ISC", ("MIT", "ISC"), False),  # not worked out: all must be accepted
        ("unknown", ("MIT",), False),
    ],
)
def test_a_licence_expression_is_accepted_as_it_reads(expression, licenses, expected):
    assert accepted(expression, licenses) is expected


def test_languages_by_name_extension_and_first_line():
    named = {
        "a.py": "Python",
        "A.CPP": "C++",
        "src/Makefile": "Makefile",
        "b.R": "R",
        "CMakeLists.txt": "CMake",
        "x.cu": "Cuda",
    }
    assert {name: language_of(name) for name in named} == named
    assert language_of("run", "#!/bin/bash\n") == language_of("run", "#! /usr/bin/env -S bash -e\n") == "Shell"
    assert language_of("run", "#!/usr/bin/python3.11\n") == "Python"
    assert language_of("notes.txt") is language_of("LICENSE") is language_of(".gitignore") is None


@pytest.mark.real_data
def test_real_tarballs_are_read_whole_under_their_licences(real_data):
    for name, count, license in (("flax-py.tar.gz", 110, "Apache-2.0"), ("llm.c.tar.gz", 73, "MIT")):
        records, skipped = read(f"{real_data}/code/{name}")
        assert (len(records), skipped) == (count, [])
        assert {found.metadata["license"] for found in records.values()} == {license}
        (step,) = code.steps(SourceConfig(reader="code"))
        dropped = {path: rejection.rule for path, found in records.items() if (rejection := step(found))}
        assert dropped.pop("LICENSE") == "code/unknown language"
        assert all(path.endswith("__init__.py") and rule == "code/empty" for path, rule in dropped.items()), dropped


@pytest.mark.parametrize(
    ("name", "header", "rest"),
    [
        ("a.py", "# Copyright 2024 Somebody\n#\n# Licensed under the Apache License\n\n", '"""A module."""\n'),
        ("a.py", "#!/usr/bin/env python\n# Copyright 2024\n", "import os\n"),
        ("a.c", "/* Copyright 2024\n * License: MIT\n */\n", "#include <stdio.h>\nint x;\n"),
        ("a.c", "// SPDX-License-Identifier: MIT\n", "#include <stdio.h>\nint x;\n"),
        ("a.html", "<!-- (c) licence: see LICENSE -->\n", "<p>text</p>\n"),
    ],
)
def test_a_legal_header_goes_and_the_first_line_and_the_code_stay(tmp_path, name, header, rest):
    (tmp_path / name).write_text(header + rest)
    (record,), (step,) = read(tmp_path)[0].values(), find_reader("code").steps(SourceConfig())
    assert step(record) is None and step.counts["legal headers"] == 1
    assert record.text == (header.split("\n")[0] + "\n" if header.startswith("#!") else "") + rest


@pytest.mark.parametrize(
    "top", ["# what this module does\nx = 1\n", "#include <license.h>\nint x;\n", '"""License."""\nx = 1\n']
)
def test_other_comments_at_the_top_stay(tmp_path, top):
    (tmp_path / ("a.c" if "include" in top else "a.py")).write_text(top)
    (record,), (step,) = read(tmp_path)[0].values(), find_reader("code").steps(SourceConfig())
    assert step(record) is None and record.text == top
