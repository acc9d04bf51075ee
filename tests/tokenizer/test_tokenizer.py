"""The tokenizer: special tokens, round trips, streaming, unusual text."""

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer
from lm.tokenizer.tokenizer import regex_safe_pieces

BYTES = Tokenizer("bytes", PATTERNS["gpt4"], {bytes([value]): value for value in range(256)}, {END_OF_TEXT: 256})


def test_special_tokens_in_raw_text_are_ordinary_text(tokenizer):
    ids = tokenizer.encode(f"a {END_OF_TEXT} b")
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == f"a {END_OF_TEXT} b"


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_unicode_text_survives_encoding_and_decoding(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_streamed_pieces_join_to_the_text(text):
    stream = BYTES.stream()
    pieces = [stream.push(int(token)) for token in BYTES.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces) or "\N{REPLACEMENT CHARACTER}" in text


def test_streaming_holds_back_an_incomplete_character_and_flushes_it_as_a_replacement():
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert stream.push(0xC3) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_a_document_opens_with_the_end_of_text_token(tokenizer):
    document = tokenizer.encode_document("hello")
    assert document[0] == tokenizer.eot_id
    np.testing.assert_array_equal(document[1:], tokenizer.encode("hello"))
    assert tokenizer.encode_document("").tolist() == [tokenizer.eot_id]


def test_token_bytes_count_utf8_and_special_tokens_count_nothing(tokenizer):
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokenizer.eot_id] == 0
    assert all(tokenizer.token_bytes[rank] == len(token) for token, rank in tokenizer.ranks.items())


def test_ids_beyond_the_vocabulary_decode_to_a_replacement_character(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\N{REPLACEMENT CHARACTER}"


def test_a_pickled_tokenizer_is_the_same_one(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.sha256 == tokenizer.sha256
    np.testing.assert_array_equal(copy.encode("some text, é"), tokenizer.encode("some text, é"))


def test_the_hash_knows_pattern_and_special_tokens_but_not_the_name():
    def variant(name="bytes", pattern="gpt4", eot=256):
        return Tokenizer(name, PATTERNS[pattern], BYTES.ranks, {END_OF_TEXT: eot}).sha256

    assert variant(name="other") == BYTES.sha256
    assert len({variant(), variant(pattern="gpt2"), variant(eot=300)}) == 3


def test_lone_surrogates_become_replacement_characters():
    assert BYTES.decode(BYTES.encode("a\ud800b")) == "a\N{REPLACEMENT CHARACTER}b"


def test_a_million_spaces_do_not_overflow_the_regex_engine():
    text = "x" + " " * 1_100_000 + "y"
    assert "".join(regex_safe_pieces(text)) == text
    assert BYTES.decode(BYTES.encode(text)) == text


def test_ordinary_long_text_is_one_piece():
    text = "word " * 200_000
    assert regex_safe_pieces(text) == [text]
    assert regex_safe_pieces("") == [""]
