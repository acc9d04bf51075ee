"""Our byte-level BPE tokenizers in the format of Hugging Face's `tokenizers`.

Three things differ. Bytes are written as characters (GPT-2's table). Merges are listed as pairs of tokens, where
tiktoken merges any two neighbours whose concatenation is a token, the lowest id first: so every split of a token in
two tokens becomes a merge, in order of the id. And the regex engine is Oniguruma, which knows no possessive counts
(`{1,3}+` means "once or more") and takes `$` for the end of a line.
"""

import json
from collections.abc import Mapping
from typing import Any

from lm.errors import LmError
from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer

# The same pieces as `lm.tokenizer.PATTERNS` cut, for Oniguruma. Nothing is lost without possessive quantifiers: what
# follows one there is a class that it cannot have eaten from.
_PATTERNS = {
    PATTERNS[name]: PATTERNS[name]
    .replace("{1,3}+", "{1,3}")
    .replace("++", "+")
    .replace("?+", "?")
    .replace("*+", "*")
    .replace("+$", r"+\z")
    for name in PATTERNS
}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json: the same ids as `tokenizer.encode`.

    Special tokens that stand in a text become their ids (as in Hugging Face's own GPT-2), where `encode` never parses
    them. No beginning of sequence is added.

    Raises:
      LmError: the pre-tokenizer's pattern is not one of ours.
    """
    if tokenizer.pattern not in _PATTERNS:
        raise LmError(
            f"the tokenizer {tokenizer.name} cuts text by a pattern of its own, which cannot be exported; "
            f"known are {', '.join(PATTERNS)}."
        )
    characters = _byte_characters()
    spell = lambda token: "".join(characters[byte] for byte in token)  # noqa: E731
    vocabulary = {spell(token): rank for token, rank in tokenizer.ranks.items()}
    # In the vocabulary too: an added token that is not gets the next free id, whatever id is asked for.
    vocabulary |= tokenizer.specials
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": _PATTERNS[tokenizer.pattern]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **added}
            for name, id_ in sorted(tokenizer.specials.items(), key=lambda s: s[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is not built up; tiktoken looks there first too
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [[spell(left), spell(right)] for left, right in merges(tokenizer.ranks)],
        },
    }


def tokenizer_config_json(max_positions: int) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair of tokens whose concatenation is a token, in the order in which BPE merges them."""
    pairs = []
    for token, rank in ranks.items():
        if len(token) > 1:
            for cut in range(1, len(token)):
                left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
                if left is not None and right is not None:
                    pairs.append((rank, left, right, cut, token))
    pairs.sort()
    return [(token[:cut], token[cut:]) for *_, cut, token in pairs]


def _byte_characters() -> list[str]:
    """Return the character of each byte: itself where it is visible in Latin-1, else the next one from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def dump(content: dict[str, Any]) -> str:
    """Return the JSON text of a file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
