"""Training: the same tokens as Hugging Face's trainer, exact sizes, clear refusals."""

import os

import pytest

from lm.errors import UsageError
from lm.tokenizer import END_OF_TEXT, train_bpe

# `lm.tokenizer.PATTERNS` for the Oniguruma engine of `tokenizers`: greedy, and `\s+` for what they match at
# the text's end.
ONIGURUMA = {
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+",
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def hugging_face_tokens(texts, count, pattern) -> set[bytes]:
    """Train `count` tokens with Hugging Face `tokenizers`; return their bytes."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ONIGURUMA[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=count, initial_alphabet=alphabet, show_progress=False)
    other.train_from_iterator(texts, trainer)
    # GPT-2's byte alphabet: printable Latin-1 stands for itself, the rest for code points from 256.
    own = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    rest = [byte for byte in range(256) if byte not in own]
    byte_of = {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(rest)}
    return {bytes(byte_of[character] for character in token) for token in other.get_vocab()}


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
def test_the_tokens_are_those_of_hugging_face(texts, pattern):
    """Where pairs are equally frequent the trainers may choose differently; this text has no such cut."""
    assert set(train_bpe(texts, 601, pattern).ranks) == hugging_face_tokens(texts, 600, pattern)


@pytest.mark.real_data
def test_the_tokens_are_those_of_hugging_face_on_tiny_shakespeare(real_data):
    with open(os.path.join(real_data, "text", "tinyshakespeare.txt"), encoding="utf-8") as file:
        texts = [file.read()]
    assert set(train_bpe(texts, 2048).ranks) == hugging_face_tokens(texts, 2047, "gpt4")


def test_the_vocabulary_has_exactly_the_size_asked_for(texts):
    tokenizer = train_bpe(texts, 300)
    assert tokenizer.vocab_size == 300
    assert sorted([*tokenizer.ranks.values(), tokenizer.eot_id]) == list(range(300))
    assert tokenizer.specials == {END_OF_TEXT: 299}


def test_bytes_alone_need_no_text():
    assert train_bpe([], 257).decode([104, 105]) == "hi"


def test_too_little_text_for_the_vocabulary_says_how_much_is_possible():
    with pytest.raises(UsageError, match=r"only 4 merges.*at most 261"):
        train_bpe(["abcd abcd"], 1000)
    assert train_bpe(["abcd abcd"], 261).vocab_size == 261


@pytest.mark.parametrize(("size", "pattern"), [(256, "gpt4"), (500, "gpt5")])
def test_impossible_requests_are_usage_errors(size, pattern):
    with pytest.raises(UsageError):
        train_bpe(["text"], size, pattern)


def test_training_is_deterministic(texts):
    assert train_bpe(texts, 400).sha256 == train_bpe(iter(texts), 400).sha256
