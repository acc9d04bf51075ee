"""A byte-level BPE tokenizer as plain data (ranks, pattern, special tokens), encoded by tiktoken."""

import base64
import codecs
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm.errors import LmError

END_OF_TEXT = "<|endoftext|>"  # separates documents and opens each of them

# Pre-tokenizer patterns: BPE merges only within the pieces that they cut. The regular expressions are
# those of OpenAI's encodings (github.com/openai/tiktoken, tiktoken_ext/openai_public.py) with possessive
# quantifiers, which match the same pieces faster. `gpt4` is cl100k_base's.
PATTERNS: Mapping[str, str] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# The regex engines of tiktoken and rustbpe overflow their stack in a run of about a million whitespace
# characters. A run is cut after each aligned block of this many.
_WHITESPACE_BLOCK = 250_000


class Tokenizer:
    """Text to token ids and back.

    Special tokens are never parsed out of text: `encode("<|endoftext|>")` gives ordinary tokens.
    A tokenizer pickles as its plain data, so worker processes rebuild it cheaply.

    Attributes:
      name: for people; not part of the identity.
      pattern: the pre-tokenizer regex.
      ranks: token bytes -> id; the id is also the merge priority.
      specials: special token -> id; has `<|endoftext|>`.
      training: how it was trained (plain data), or None.
      eot_id: the id of `<|endoftext|>`, the document separator and beginning of sequence.
      vocab_size: V, the largest id + 1, special tokens included.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        ranks: Mapping[bytes, int],
        specials: Mapping[str, int],
        training: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.pattern = pattern
        self.ranks = dict(ranks)
        self.specials = dict(specials)
        self.training = dict(training) if training else None
        self.eot_id = self.specials[END_OF_TEXT]
        self.vocab_size = 1 + max(*self.ranks.values(), *self.specials.values())

    def __reduce__(self):
        return Tokenizer, (self.name, self.pattern, self.ranks, self.specials, self.training)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, sha256={self.sha256[:12]}…)"

    @functools.cached_property
    def encoding(self):
        """The `tiktoken.Encoding`, built straight from the ranks: no cache file, no network."""
        import tiktoken

        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.specials
        )

    @functools.cached_property
    def ranks_file(self) -> bytes:
        """The ranks in tiktoken's file format: a line `base64(token) id` per token, in order of id."""
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in ordered)

    @functools.cached_property
    def sha256(self) -> str:
        """Identity: sha256 over ranks, pattern and special tokens (64 hexadecimal digits)."""
        identity = {
            "pattern": self.pattern,
            "ranks": hashlib.sha256(self.ranks_file).hexdigest(),
            "specials": self.specials,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _bytes_by_id(self) -> list[bytes]:
        """Bytes per id, special tokens as their names; an id without a token is U+FFFD."""
        table = ["\N{REPLACEMENT CHARACTER}".encode()] * self.vocab_size
        for token, rank in self.ranks.items():
            table[rank] = token
        for token, rank in self.specials.items():
            table[rank] = token.encode()
        return table

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for: int32 [V], 0 for special tokens and unused ids."""
        lengths_V = np.zeros(self.vocab_size, np.int32)
        lengths_V[list(self.ranks.values())] = [len(token) for token in self.ranks]
        lengths_V.setflags(write=False)
        return lengths_V

    def encode(self, text: str) -> np.ndarray:
        """Return the text's token ids, uint32 [tokens]; lone surrogates become U+FFFD.

        Raises:
          LmError: the regex engine gave up on the text.
        """
        parts = [self._encode_piece(piece) for piece in regex_safe_pieces(valid_unicode(text))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            return self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except BaseException as error:  # a panic in tiktoken's Rust code is a BaseException of its own
            if type(error).__name__ != "PanicException":
                raise
            raise LmError(
                f"the tokenizer {self.name} cannot encode a text of {len(text)} characters: {error}"
            ) from error

    def encode_document(self, text: str) -> np.ndarray:
        """Return `[eot] + tokens`, uint32: a document opens with the separator (llm.c's convention)."""
        tokens = self.encode(text)
        document = np.empty(len(tokens) + 1, np.uint32)
        document[0] = self.eot_id
        document[1:] = tokens
        return document

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of token ids; an id that no token has (a padded vocabulary's) gives U+FFFD."""
        table = self._bytes_by_id
        unknown = "\N{REPLACEMENT CHARACTER}".encode()
        return b"".join(table[int(id_)] if 0 <= int(id_) < len(table) else unknown for id_ in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self) -> "StreamDecoder":
        """Return a decoder for tokens that arrive one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes tokens as they come, holding back bytes until their UTF-8 character is complete."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """Return the text that these tokens complete (empty if none)."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """Return what was held back, incomplete characters as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def valid_unicode(text: str) -> str:
    """Return the text with lone surrogates (which UTF-8 cannot hold) replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def regex_safe_pieces(text: str) -> list[str]:
    """Cut a text within runs of at least 500,000 whitespace characters; any other text is one piece."""
    starts = range(0, len(text) - _WHITESPACE_BLOCK + 1, _WHITESPACE_BLOCK)
    # `isspace` stops at the first other character, so this looks at few characters of ordinary text.
    cuts = [start + _WHITESPACE_BLOCK for start in starts if text[start : start + _WHITESPACE_BLOCK].isspace()]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
