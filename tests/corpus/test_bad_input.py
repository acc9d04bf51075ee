"""What is wrong with raw files: one line that names it, and the rest of the work kept."""

import bz2
import gzip
import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from tests.corpus.small_corpus import write_corpus
from tests.corpus.test_build import card_of

pytestmark = pytest.mark.slow


def build(config, out, *options, limit: int | None = None) -> tuple[int, str]:
    """Run `lm data build`; returns the exit code and stderr. `limit`: bytes that a file may have, as on a full disk."""
    command = [
        sys.executable,
        "-m",
        "lm",
        "data",
        "build",
        "--config",
        str(config),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    bound = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    done = subprocess.run([*command, *options], capture_output=True, text=True, preexec_fn=bound)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def raw(tmp_path):
    write_corpus(tmp_path / "raw")
    return tmp_path / "raw"


def truncated(raw: pathlib.Path) -> str:
    content = (raw / "wiki.xml.bz2").read_bytes()
    (raw / "wiki.xml.bz2").write_bytes(content[: len(content) // 2])
    return "truncated"


def broken_xml(raw: pathlib.Path) -> str:
    text = bz2.decompress((raw / "wiki.xml.bz2").read_bytes())
    (raw / "wiki.xml.bz2").write_bytes(bz2.compress(text.replace(b"<title>Page 9", b"<title", 1)))
    return "broken XML"


def bomb(raw: pathlib.Path) -> str:
    (raw / "web" / "2.jsonl.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    return "expands more than 200-fold"


@pytest.mark.parametrize("damage", [truncated, broken_xml, bomb])
def test_a_bad_file_is_named_in_one_line_and_all_others_are_read(raw, tmp_path, damage):
    said = damage(raw)
    code, error = build(raw / "corpus.py", tmp_path / "out")
    last = error.strip().splitlines()[-1]
    assert code == 1 and said in last and "are done and kept" in last, error
    assert len(list((tmp_path / "out" / "work" / "read").rglob("*.json"))) >= 6


def test_an_empty_file_is_passed_over_and_a_source_without_documents_is_refused(raw, tmp_path):
    (raw / "web" / "0.jsonl").write_text("")
    assert build(raw / "corpus.py", tmp_path / "out")[0] == 0
    (raw / "web" / "1.jsonl").write_text("")
    code, error = build(raw / "corpus.py", tmp_path / "other")
    assert code == 2 and "config.sources.web has no documents" in error.strip().splitlines()[-1]


def test_a_wrong_checksum_is_named(raw, tmp_path):
    code, error = build(raw / "corpus.py", tmp_path / "out", f"--config.sources.wiki.sha256=('{'0' * 64}',)")
    assert code == 1 and "wiki.xml.bz2" in error and "sha256" in error and "are done and kept" in error


def test_lines_that_are_no_documents_are_skipped_counted_and_shown(raw, tmp_path):
    with open(raw / "web" / "0.jsonl", "ab") as file:
        file.write(b'{"text": "not \xff\xfe UTF-8"}\n{"text": broken\n{"text": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n')
        file.write(json.dumps({"text": "A last line, after one of 200 MB."}).encode() + b"\n")
    code, error = build(raw / "corpus.py", tmp_path / "out")
    assert code == 0, error
    web = card_of(tmp_path / "out")["sources"]["web"]
    assert web["skipped_count"] == 3 and len(web["skipped"]) == 3 and web["stages"][0]["documents"] == 61
    assert any("UTF-8" in entry["reason"] for entry in web["skipped"])


def test_a_full_disk_is_one_line_and_the_same_command_continues(raw, tmp_path):
    without = "--config.sources.web.languages=()"  # its model is larger than the limit
    code, error = build(raw / "corpus.py", tmp_path / "out", without, limit=20_000)
    assert code == 1 and "cannot write" in error.strip().splitlines()[-1], error
    assert not os.path.exists(tmp_path / "out" / "manifest.json")
    assert build(raw / "corpus.py", tmp_path / "out", without)[0] == 0
