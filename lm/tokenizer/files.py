"""Tokenizer files: OpenAI's encodings by name, and this codebase's own pair of files.

A tokenizer on disk is `X.tiktoken` (the ranks, in tiktoken's format) and `X.json` (pattern, special
tokens, the sha256 of the ranks file, how it was trained). OpenAI's files need no JSON: their sha256
tells which they are.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import os

from lm import storage
from lm.errors import DamagedFileError, LmError, UsageError, did_you_mean
from lm.tokenizer.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer

_FORMAT, _VERSION = "lm-tokenizer", 1
_URL = "https://openaipublic.blob.core.windows.net/encodings/"


@dataclasses.dataclass(frozen=True)
class Official:
    """One of OpenAI's encodings."""

    file: str  # at _URL
    sha256: str  # of that file, as tiktoken_ext/openai_public.py states it
    pattern: str  # a name in PATTERNS
    specials: dict[str, int]


_R50K = Official(
    "r50k_base.tiktoken",
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "gpt2",
    {END_OF_TEXT: 50256},
)
OFFICIAL = {
    "gpt2": _R50K,  # the same tokens; gpt2's own two files are only slower to read
    "r50k_base": _R50K,
    "cl100k_base": Official(
        "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "gpt4",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Official(
        "o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "o200k",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}


def load_tokenizer(name_or_path: str, *, sha256: str | None = None, cache: str | None = None) -> Tokenizer:
    """Return the tokenizer of a name (`gpt2`, `r50k_base`, `cl100k_base`, `o200k_base`) or a `.tiktoken` file.

    Args:
      name_or_path: a name is looked up in $TIKTOKEN_CACHE_DIR, then in the cache, then downloaded into it.
      sha256: what the ranks file must hash to; None: an official hash, or the one in its JSON.
      cache: the cache's root; None: $LM_CACHE or ~/.cache/lm.

    Raises:
      UsageError: no such name or file, no network, or a file whose pattern is not known.
      DamagedFileError: the file's sha256 is not what it must be, or it does not read as ranks.
    """
    if name_or_path in OFFICIAL:
        official = OFFICIAL[name_or_path]
        path, data = _official_file(official, cache)
        _check_sha256(path, data, sha256 or official.sha256)
        return _from_official(name_or_path, official, path, data)
    if not storage.exists(name_or_path):
        raise UsageError(
            f"no tokenizer {name_or_path!r}: expected one of {', '.join(OFFICIAL)}, or an existing .tiktoken file."
            f"{did_you_mean(name_or_path, OFFICIAL)}"
        )
    data = storage.read_bytes(name_or_path)
    if sha256:
        _check_sha256(name_or_path, data, sha256)
    if storage.exists(_sidecar(name_or_path)):
        return _from_sidecar(name_or_path, data)
    digest = hashlib.sha256(data).hexdigest()
    for name, official in OFFICIAL.items():
        if digest == official.sha256:
            return _from_official(name, official, name_or_path, data)
        if os.path.basename(name_or_path) == official.file:
            _check_sha256(name_or_path, data, official.sha256)
    raise UsageError(
        f'"{name_or_path}" is none of OpenAI\'s files and has no "{_sidecar(name_or_path)}", '
        "which would give its pattern and special tokens."
    )


def save(tokenizer: Tokenizer, path: str) -> None:
    """Write `X.tiktoken` and, last, `X.json`.

    Raises:
      UsageError: the path does not end in `.tiktoken`.
      LmError: the files cannot be written.
    """
    if not path.endswith(".tiktoken"):
        raise UsageError(f'a tokenizer file must end in ".tiktoken": "{path}".')
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "pattern": tokenizer.pattern,
        "specials": tokenizer.specials,
        "ranks_sha256": hashlib.sha256(tokenizer.ranks_file).hexdigest(),
        "sha256": tokenizer.sha256,
        "training": tokenizer.training,
    }
    storage.write_atomic(path, tokenizer.ranks_file)
    storage.write_atomic(_sidecar(path), json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def tokenizer_identity(name_or_path: str) -> str:
    """Return a string that changes with the tokenizer, without parsing it (for cache keys).

    Raises:
      UsageError: there is no such name or file.
    """
    if name_or_path in OFFICIAL:
        return OFFICIAL[name_or_path].sha256
    if not storage.exists(name_or_path):
        return load_tokenizer(name_or_path).sha256  # raises with the names that are accepted
    data = storage.read_bytes(name_or_path)
    sidecar = _sidecar(name_or_path)
    return hashlib.sha256(data + (storage.read_bytes(sidecar) if storage.exists(sidecar) else b"")).hexdigest()


def _sidecar(path: str) -> str:
    return path.removesuffix(".tiktoken") + ".json"


def _check_sha256(path: str, data: bytes, expected: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected.lower():
        raise DamagedFileError(
            f'"{path}" is damaged or another file: its sha256 is {actual[:16]}…, expected {expected[:16]}…. '
            "Delete it and fetch it again."
        )


def _parse_ranks(path: str, data: bytes) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DamagedFileError(f'"{path}" line {number} is not "base64 rank".') from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) != len(ranks):
        raise DamagedFileError(f'"{path}" is damaged: bytes without a token, or two tokens with one id.')
    return ranks


def _from_official(name: str, official: Official, path: str, data: bytes) -> Tokenizer:
    return Tokenizer(name, PATTERNS[official.pattern], _parse_ranks(path, data), official.specials)


def _from_sidecar(path: str, data: bytes) -> Tokenizer:
    sidecar = _sidecar(path)
    try:
        about = json.loads(storage.read_text(sidecar))
        if about["format"] != _FORMAT or about["version"] != _VERSION:
            raise DamagedFileError(f'"{sidecar}" is not a tokenizer of format {_FORMAT} version {_VERSION}.')
        _check_sha256(path, data, about["ranks_sha256"])
        ranks = _parse_ranks(path, data)
        tokenizer = Tokenizer(about["name"], about["pattern"], ranks, about["specials"], about.get("training"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f'"{sidecar}" is damaged: {type(error).__name__}: {error}.') from error
    if tokenizer.sha256 != about.get("sha256"):
        raise DamagedFileError(f'"{sidecar}" was changed: its pattern or special tokens do not fit its sha256.')
    return tokenizer


def _official_file(official: Official, cache: str | None) -> tuple[str, bytes]:
    """Return (path, content) of an official file, downloading it if no cache has it."""
    url = _URL + official.file
    # tiktoken's own cache names a file by the sha1 of its URL. We read there but never write or delete.
    folders = [os.environ.get(variable) for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")]
    cached = [os.path.join(folder, hashlib.sha1(url.encode()).hexdigest()) for folder in folders if folder]
    ours = storage.join(storage.cache_root(cache), "tokenizers", official.file)
    for path in [*cached, ours]:
        if storage.exists(path):
            return path, storage.read_bytes(path)
    data = _download(url, ours)
    _check_sha256(url, data, official.sha256)
    try:
        storage.make_folder(os.path.dirname(ours))
        storage.write_atomic(ours, data)
    except LmError:
        pass  # a cache that cannot be written only costs the next run a download
    return ours, data


def _download(url: str, destination: str) -> bytes:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f'cannot download {url} ({reason}). Without a network, put that file at "{destination}", '
            "set TIKTOKEN_CACHE_DIR, or train a tokenizer (config.data.tokenizer=train)."
        ) from error
