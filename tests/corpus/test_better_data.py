"""The benchmark of better data holds out before anything else: no document is on both sides, none is lost."""

import bz2
import gzip
import io
import itertools
import json
import string
import tarfile

import pytest

from experiments.benchmarks.better_data_sides import DOMAINS, HeldOut, raw_documents, set_apart

PAGE = "<page><title>T{n}</title><ns>0</ns><id>{n}</id><revision><id>1</id><text>text {n}</text></revision></page>\n"


@pytest.fixture
def root(tmp_path):
    for name in (*DOMAINS, "eval"):
        (tmp_path / "root" / name).mkdir(parents=True)
    root = tmp_path / "root"
    pages = "".join(PAGE.format(n=n) for n in range(60))
    (root / "wiki" / "w.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>\n{pages}</mediawiki>\n".encode()))
    for name in ("a", "b", "c"):
        (root / "books" / f"{name}.txt").write_text(f"book {name}")
    lines = [json.dumps({"text": f"line {n}"}) + "\n" for n in range(60)]
    (root / "web" / "c4-1000.jsonl").write_text("".join(lines))
    with tarfile.open(root / "code" / "c.tar.gz", "w:gz") as archive:
        for name in ["LICENSE", *(f"{n}.py" for n in range(60))]:
            content = name.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root


def test_every_document_is_on_one_side(root, tmp_path):
    train, held = tmp_path / "train", tmp_path / "held"
    set_apart(str(root), str(train), str(held))
    for domain in DOMAINS:
        whole, one, other = (list(raw_documents(str(folder), domain)) for folder in (root, train, held))
        assert one and other and len(other) < len(one), domain
        assert sorted({*one, *other}) == sorted(whole), domain
        assert {*one} & {*other} == ({"LICENSE"} if domain == "code" else set()), domain


def test_a_crawl_is_split_by_page_and_its_records_stay_whole(root, tmp_path):
    def record(n):
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{n}\r\n"
        return gzip.compress(f"{head}Content-Length: 2\r\n\r\nhi\r\n\r\n".encode())

    records = [record(n) for n in range(60)]
    (root / "web" / "x.warc.gz").write_bytes(b"".join(records))
    train, held = tmp_path / "train", tmp_path / "held"
    set_apart(str(root), str(train), str(held))
    sizes = [len((folder / "web" / "x.warc.gz").read_bytes()) for folder in (train, held)]
    assert sum(sizes) == sum(map(len, records)) and 0 < sizes[1] < sizes[0]


def test_documents_near_to_held_out_text_are_found_and_those_with_the_same_license_are_not():
    words = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3)]  # digits are all one
    license_text, others = " ".join(words[9000:9090]), " ".join(words[8000:8120])
    held = HeldOut([" ".join(words[:600]), f"{license_text} {' '.join(words[1500:1560])}"])
    assert held.is_near(" ".join(words[50:600]))
    assert held.is_near(" ".join(words))  # holds all of it
    assert not held.is_near(" ".join(words[700:1400]))
    assert not held.is_near(f"{license_text} {others}")
    assert not held.is_near("")
