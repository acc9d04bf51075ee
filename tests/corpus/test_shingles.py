"""What counts as the same words, and the hashes of their n-grams."""

import random

import numpy as np
import pytest

from lm.corpus.dedup import shingles as module
from lm.corpus.dedup.exact import paragraph_hashes, paragraphs, text_hash, without_paragraphs
from lm.corpus.dedup.shingles import find_words, normalize, shingle_set, shingles, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT,  sat\ton—the\n\nmat!", "the cat sat on the mat"),
        ("It costs 1,234.5 or 12٫5; 7 of 10", "it costs 0 0 or 0 0 of 0"),
        ("Café naïve cafe\u0301", "cafe naive cafe"),
        ("“don’t” a_b x-ray e\u00admail zero\u200bwidth", "don t a b x ray email zerowidth"),
        ("日本語です", "日 本 語 て す"),
        ("Привет, мир", "привет мир"),
        ("++ -- \u00a0 …", ""),
    ],
)
def test_normalized_text(text, expected):
    assert normalize(text) == expected
    words = find_words([text])
    assert words.lengths.tolist() == [len(expected)] and len(words.hashes) == len(expected.split())


def test_words_do_not_depend_on_the_texts_beside_them_or_on_the_cache(monkeypatch):
    chance = random.Random(0)
    pieces = ["don't", "x", "1.5kg", "日本", "--", "Ünï", "well-known,", "\u00a0", "end.\n\n"]
    texts = [" ".join(chance.choices(pieces, k=chance.randrange(12))) for _ in range(50)] + [""]
    import xxhash

    together = find_words(texts)
    monkeypatch.setattr(module, "_CACHED_TOKENS", 3)
    for index, text in enumerate(texts):
        expected = [xxhash.xxh3_64_intdigest(word) for word in split_words(text)]
        assert together.of(index).tolist() == find_words([text]).hashes.tolist() == expected


def test_more_tokens_than_the_cache_has_room_for():
    text = " ".join(f"w{n}-v{n}" for n in range(70_000))
    assert len(np.unique(find_words([text, text]).hashes)) == len(set(split_words(text)))


def test_shingles_are_the_same_exactly_where_the_words_are():
    a, b = "the quick brown fox jumps over the lazy dog", "The quick, brown fox jumps over one lazy dog!"
    sets = [set(shingle_set(text, 5).tolist()) for text in (a, b)]
    assert len(sets[0]) == len(sets[1]) == 5
    assert len(sets[0] & sets[1]) == 2  # from `the` and from `quick` on


def test_the_order_of_words_matters_and_repeated_ones_do_not_cancel():
    texts = ["a b c d e", "b a c d e", "e d c b a", "a a a a a", "a a a a b", "b b b b b"]
    assert len({shingle_set(text, 5).tobytes() for text in texts}) == len(texts)


def test_texts_shorter_than_a_shingle_have_one():
    found = shingles(find_words(["", "a", "a b", "b a", "a b c d", "a b c d e", "a b c d e f"]), 5)
    assert [len(some) for some in found] == [0, 1, 1, 1, 1, 1, 2]
    assert len({some.tobytes() for some in found[1:]}) == 6


def test_shingles_do_not_cross_from_one_text_to_the_next():
    texts = ["one two three four five six", "x", "seven eight nine ten eleven twelve"]
    together = shingles(find_words(texts), 5)
    for text, some in zip(texts, together, strict=True):
        assert some.tolist() == shingles(find_words([text]), 5)[0].tolist()


def test_text_hash_is_that_of_the_words_or_of_the_text_without_words():
    def hashed(text):
        return text_hash(find_words([text]).hashes, text)

    assert hashed("One, two") == hashed("one TWO!") != hashed("one two two")
    assert hashed("++") != hashed("--")


def test_paragraphs_are_parted_by_blank_lines_or_else_by_lines():
    assert paragraphs("a\nb\n \t\nc\n\n\nd") == (["a\nb", "c", "d"], "\n\n")
    assert paragraphs("a\nb\nc") == (["a", "b", "c"], "\n")
    assert without_paragraphs("a\nb\n\nc\n\nd", {1}) == "a\nb\n\nd"
    assert without_paragraphs("a\n\n \n\n", {0}) == ""


def test_paragraphs_are_hashed_from_their_normalized_length_on():
    text = "first, " * 5 + "\n\nFIRST " + "first " * 4 + "\n\nshort"
    (one, other) = paragraph_hashes(text, 29)
    assert one[0] == 0 and other[0] == 1 and one[1] == other[1]
    assert paragraph_hashes(text, 30) == []
