"""Our tokenizers in the format of `tokenizers`: the same ids, whatever the text."""

import json
import random

import pytest
import tokenizers

from lm.errors import LmError
from lm.interop.tokenizer import merges, tokenizer_json
from lm.tokenizer import Tokenizer, train_bpe

EDGES = [
    *("", " ", "\n", "\n\n  \n", "a\nb", "  a  b ", "\t\tx\r\n\r\n y", "12345 67 8", "x  \n", "trailing   ", "t\n\n"),
    *("don't DON'T I'LL 'ſ we'Ve", "Привет, мир!", "Ελληνικά", "עברית العربية", "中文字 日本語", "한국어", "ไทย हिन्दी"),
    *("👩‍👩‍👧‍👦🏳️‍🌈🇩🇪", "e\u0301\u0327 n\u0303", "\u00a0\u2003\u3000x", "\u200b\u200d\ufeff", "\x00\x01\x7f\x85\x1c\u2028 x"),
    *("½ Ⅷ ٣٤٥٦ ²³", "a" * 500, " " * 300, "=" * 200 + "\n" * 50, "\U0001f9ff\U000e0001", "<|endoftext", "Ⱥ\u0345"),
]  # fmt: skip
PIECES = [
    "a",
    "B",
    " ",
    "  ",
    "\n",
    "\r",
    "\t",
    "1",
    "23",
    "'s",
    "'",
    "é",
    "中",
    "\u00a0",
    "!",
    "...",
    "😀",
    "\u0301",
    "ſ",
]


def texts() -> list[str]:
    draw = random.Random(0)
    return [*EDGES, *("".join(draw.choices(PIECES, k=draw.randint(1, 30))) for _ in range(1000))]


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def pair(request):
    """A tokenizer trained on awkward text, and its export."""
    draw = random.Random(1)
    words = [draw.choice(["banana", "bandana", "ana", "nan", "don't", "日本語", "  x\n"]) for _ in range(2000)]
    tokenizer = train_bpe([" ".join(words), *texts()], 600, request.param)
    return tokenizer, tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))


def test_ids_are_the_same_and_decode_to_the_text(pair):
    tokenizer, exported = pair
    for text in [*texts(), "bananabandananana ananas"]:
        ids = tokenizer.encode(text).tolist()
        assert exported.encode(text).ids == ids, repr(text)
        assert exported.decode(ids, skip_special_tokens=False) == text


def test_the_regex_engine_sees_every_character_alike(pair):
    tokenizer, exported = pair
    for block in range(0, 0x30000, 0x100):
        if 0xD8 <= block >> 8 < 0xE0:  # surrogates
            continue
        text = "".join(f"a{chr(code)}b 1{chr(code)} {chr(code)}\n" for code in range(block, block + 0x100))
        assert exported.encode(text).ids == tokenizer.encode(text).tolist(), hex(block)


def test_special_tokens_keep_their_ids_though_others_before_them_are_free():
    ranks = {bytes([byte]): byte for byte in range(256)}
    pattern = train_bpe(["a"], 257, "gpt2").pattern
    tokenizer = Tokenizer("gaps", pattern, ranks, {"<|endoftext|>": 300, "<|other|>": 400})
    exported = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    assert exported.encode("a<|endoftext|><|other|>").ids == [97, 300, 400]
    assert tokenizer.encode("<|other|>").tolist() == list(b"<|other|>"), "ours does not parse them"


def test_every_way_to_build_a_token_is_a_merge_in_order_of_ids():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert merges(ranks) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"c")]


def test_a_pattern_of_ones_own_is_refused():
    ranks = {bytes([byte]): byte for byte in range(256)}
    with pytest.raises(LmError, match="pattern of its own"):
        tokenizer_json(Tokenizer("own", r"\w+", ranks, {"<|endoftext|>": 256}))
