"""The source `download`: public corpora by name, or a file at a URL, kept in the cache."""

import codecs
import dataclasses
import hashlib
import os
import re
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from lm import storage
from lm.config import DataConfig
from lm.data.document import Document, Progress
from lm.data.download import RemoteFile, fetch, record
from lm.data.sources.files import jsonl, text
from lm.data.sources.parquet import parquet
from lm.errors import ConfigError, DamagedFileError, LmError, did_you_mean

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a name or a URL stands for."""

    files: tuple[RemoteFile, ...]
    format: str  # text, jsonl, parquet, zip (a document per member), separated (at <|endoftext|>), MediaWiki
    license: str | None = None
    about: str = ""


_HUB = "https://huggingface.co/datasets"
# The revisions below are commits. sha256 and sizes of files on the hub: its own Git LFS pointers, as its pages show them.
_TINYSTORIES = f"{_HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_FINEWEB_EDU = f"{_HUB}/HuggingFaceFW/fineweb-edu/resolve/87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/sample/10BT"
_WIKIPEDIA = f"{_HUB}/wikimedia/wikipedia/resolve/cf26be8eef6bc935da5d2281be5aad4813e49e90"
_FINEWEB_EDU_FILES = tuple(
    RemoteFile(f"{_FINEWEB_EDU}/{number:03d}_00000.parquet", sha256, size)
    for number, (sha256, size) in enumerate(
        [
            ("b1ba7b2ce4cb5ea6ef42dca40263eabb85f37700d01693a68e9b30a31d78e871", 2_152_819_114),
            ("3fcf2dc69cd52503986276d3d2d26a8c356d0f2ea28a0de4fdbda8cf87755693", 2_152_222_432),
            ("547ae182d132c9f06b6ce63149567208ea9f57630bfd9b1a2938e504f0c9ebd7", 2_151_796_315),
            ("22184e6eb25759ddd97783751ffc73e1705dfa2542e630dae1f2a8bac8ee6ddb", 2_152_437_524),
            ("33557ddd87a07a4ae6fcaf7a4789c7b484e5cc0c273ca12a65b74200e6d8748b", 2_152_338_550),
            ("e08d79927ecb377786572cd854817c748ceb8880878b1a0eb91abf8c85d505ea", 2_152_189_947),
            ("554fa2613c9261d6c9c396caab881de3160175794c6c3e1856bf28a0e9cb9b76", 2_152_689_867),
            ("4b7d1f697d4afff7f5f65cb7aa4d83acc6db716da4d46ea23399d0c50608c6e3", 2_150_686_637),
            ("a6d9dcc0c72ecd7c7f0173c2d06b3a4249a2ccaa94961469d1a522ca689bbf1a", 2_151_274_846),
            ("f836cd3c70b95776699eb6c356b2dbf702816e25dcf39992f5c80a29029d23c3", 2_151_913_277),
            ("e5a2eae25f057f0856a10bfae314c6ca8ea8bb08456d2131e9e89b2b8305e2f6", 2_152_798_864),
            ("db71cf0425bb3d1813a09f12ff1acd6dabdfb91a2e4f141960254ee5a7f036e7", 2_152_323_681),
            ("08b47a3e1c25161f796d2f8dbf99ccf60affdebdcea4910833d0d5783315551f", 2_152_069_689),
            ("b393f51fefab26cd6f4c8f65707c1924f6666c4961a0ebebe04bb57f7ec832de", 540_632_672),
        ]
    )
)

NAMED: dict[str, Corpus] = {
    "tiny_shakespeare": Corpus(
        (
            RemoteFile(
                "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
                "/data/tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",  # of the file at that commit
                1_115_394,
            ),
        ),
        "text",
        "public domain",
        "40,000 lines of Shakespeare; one document, split by position",
    ),
    "tinystories": Corpus(
        (
            RemoteFile(
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-train.txt",
                "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
                2_227_753_162,
            ),
        ),
        "separated",
        "CDLA-Sharing-1.0",
        "2.7 million short stories by GPT-4 (arXiv 2305.07759)",
    ),
    "tinystories_valid": Corpus(
        (
            RemoteFile(
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-valid.txt",
                "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
                22_502_601,
            ),
        ),
        "separated",
        "CDLA-Sharing-1.0",
        "its validation file, 1 % of the size",
    ),
    "enwik8": Corpus(
        (
            RemoteFile(
                # Size: mattmahoney.net/dc/textdata.html, which also gives the MD5 of what is inside. The sha256 is the
                # one that projects which pin this zip agree on, some of them after checking that MD5.
                "https://mattmahoney.net/dc/enwik8.zip",
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
                36_445_475,
            ),
        ),
        "zip",
        "GFDL (Wikipedia of 2006)",
        "the first 10^8 bytes of Wikipedia's XML; with fractions 0.05 and 0.05 the usual 90/5/5 million split",
    ),
    "fineweb_edu_sample": Corpus(
        _FINEWEB_EDU_FILES[:1],
        "parquet",
        "ODC-By 1.0, Common Crawl's terms of use",
        "the first of 14 files of FineWeb-Edu sample-10BT (arXiv 2406.17557)",
    ),
    "fineweb_edu_10bt": Corpus(
        _FINEWEB_EDU_FILES,
        "parquet",
        "ODC-By 1.0, Common Crawl's terms of use",
        "all of it: 9.7 million documents, 10 billion GPT-2 tokens",
    ),
    "wikipedia_simple": Corpus(
        (
            RemoteFile(
                f"{_WIKIPEDIA}/20231101.simple/train-00000-of-00001.parquet",
                "31bded16768a47c286becd292079122f5d7d4397a17b87d4250a00ccd581e6f0",
                156_885_218,
            ),
        ),
        "parquet",
        "CC BY-SA 3.0, GFDL",
        "Simple English Wikipedia of 2023-11-01 as plain text, 241,787 articles",
    ),
    "simplewiki_dump": Corpus(
        (RemoteFile("https://dumps.wikimedia.org/simplewiki/latest/simplewiki-latest-pages-articles.xml.bz2"),),
        "MediaWiki",
        "CC BY-SA 4.0, GFDL",
        "Simple English Wikipedia's newest dump, raw: download only",
    ),
}

_SUFFIXES = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
    ".zip": "zip",
}


def corpus_of(name_or_url: str, sha256: str | None = None) -> Corpus:
    """Return what a name of the table or a URL stands for.

    Args:
      name_or_url: e.g. `enwik8` or `https://example.org/corpus.jsonl.gz`, its format by the suffix.
      sha256: what the file at the URL must hash to; a named corpus has its own.

    Raises:
      ConfigError: neither of them, a suffix that is not known, or no sha256.
    """
    if sha256 is not None and (name_or_url in NAMED or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256)):
        raise ConfigError(
            f"sha256 {sha256!r} (config.data.sha256): expected the 64 hexadecimal digits of a URL's file; "
            "a corpus with a name has its own."
        )
    if name_or_url in NAMED:
        return NAMED[name_or_url]
    if not name_or_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"no corpus {name_or_url!r} (config.data.path): expected one of {', '.join(NAMED)}, or an http(s) URL."
            f"{did_you_mean(name_or_url, NAMED)}"
        )
    try:
        url = urllib.parse.quote(name_or_url, safe="%/:=&?~#+!$,;'@()*[]")  # as a browser does
        file = RemoteFile(url, sha256.lower() if sha256 else None)
        name = file.name.lower()
    except ValueError as error:
        raise ConfigError(f"{name_or_url!r} (config.data.path) is not a URL: {error}.") from error
    for suffix, format in _SUFFIXES.items():
        if name.endswith(suffix):
            return Corpus((file,), format)
    raise ConfigError(
        f"cannot tell the format of {name_or_url!r} (config.data.path): expected a URL that ends in "
        f"{', '.join(_SUFFIXES)}. Anything else: fetch it yourself, then use the source text, jsonl or parquet."
    )


def folder_of(name_or_url: str, cache: str | None = None) -> str:
    """Return where a corpus lies: `downloads/` of the cache, then its name or a hash of its URL."""
    key = name_or_url if name_or_url in NAMED else hashlib.sha256(name_or_url.encode()).hexdigest()[:16]
    return storage.join(storage.cache_root(cache), "downloads", key)


def inputs(config: DataConfig, progress: Progress | None = None) -> list[str]:
    """Return the files' format and sha256, downloading those for which none is known yet."""
    corpus, folder = _readable(config)
    for file in corpus.files:
        if record(file, folder)["sha256"] is None:
            fetch(file, folder, progress)
    return [corpus.format] + [record(file, folder)["sha256"] for file in corpus.files]


def acquire(config: DataConfig, progress: Progress | None = None) -> None:
    """Download what is missing of the corpus and verify all of it; raises as `lm.data.download.fetch`."""
    corpus, folder = _readable(config)
    for file in corpus.files:
        fetch(file, folder, progress)


def about(config: DataConfig) -> dict[str, Any]:
    """Return licence and files, each with URL, size, sha256 and where that is from."""
    corpus, folder = _readable(config)
    return {"license": corpus.license or "not known", "files": [record(file, folder) for file in corpus.files]}


def download(config: DataConfig) -> Iterator[Document]:
    """A corpus by name or at a URL, downloaded at its first use.

    Raises:
      ConfigError: no such corpus, or one that cannot be read as text yet.
      UsageError, LmError: it cannot be downloaded.
      DamagedFileError: a file does not read as what it should be.
    """
    corpus, folder = _readable(config)
    for file in corpus.files:
        path = os.path.join(folder, file.name)
        if not os.path.exists(path):
            fetch(file, folder)
        yield from _READERS[corpus.format](dataclasses.replace(config, path=path))


def _readable(config: DataConfig) -> tuple[Corpus, str]:
    """Return the config's corpus and folder.

    Raises:
      ConfigError: as `corpus_of`, or it cannot be read as text.
    """
    corpus = corpus_of(config.path, config.sha256)
    if corpus.format not in _READERS:
        raise ConfigError(
            f"config.data.path={config.path!r} is {corpus.format} markup, which no source reads as text yet: use "
            f"wikipedia_simple, or fetch the file alone with: lm data download {config.path}."
        )
    return corpus, folder_of(config.path, config.cache)


def _separated(config: DataConfig) -> Iterator[Document]:
    """A text file of documents between `<|endoftext|>`, read piece by piece; white space around them is dropped."""
    separator, number, rest = "<|endoftext|>", 0, ""
    decoder = codecs.getincrementaldecoder("utf-8")()
    name = os.path.basename(config.path)
    try:
        with open(config.path, "rb") as file:
            while True:
                chunk = file.read(_CHUNK)
                *whole, rest = (rest + decoder.decode(chunk, final=not chunk)).split(separator)
                for story in [*whole, rest] if not chunk else whole:
                    number += 1
                    if story := story.strip():
                        yield Document(story, f"{name}:{number}")
                if not chunk:
                    return
    except UnicodeDecodeError as error:
        raise DamagedFileError(f'"{config.path}" is not UTF-8 text after document {number}: {error}.') from error
    except OSError as error:
        raise LmError(f'cannot read "{config.path}": {error.strerror or error}.') from error


def _zip(config: DataConfig) -> Iterator[Document]:
    """The UTF-8 text files in a zip, a document each, by name."""
    member = ""
    try:
        with zipfile.ZipFile(config.path) as archive:
            for member in sorted(info.filename for info in archive.infolist() if not info.is_dir()):
                yield Document(archive.read(member).decode("utf-8-sig"), member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        inside = f' ("{member}" in it)' if member else ""
        raise DamagedFileError(f'"{config.path}"{inside} does not read as zipped UTF-8 text: {error}.') from error
    except OSError as error:
        raise LmError(f'cannot read "{config.path}": {error.strerror or error}.') from error


_READERS = {"text": text, "jsonl": jsonl, "parquet": parquet, "zip": _zip, "separated": _separated}
