"""A small invented language: enough repetition to learn merges from, some letters of two UTF-8 bytes."""

import random

import pytest

from lm.tokenizer import train_bpe


def invented_texts(documents: int = 40, seed: int = 0) -> list[str]:
    """Return documents of about 1,200 characters, the same ones for the same arguments."""
    draw = random.Random(seed).random
    syllables = ["ba", "ke", "lo", "mi", "tur", "shan", "gre", "st", "ing", "ed", "on", "é", "ß", "qu", "ø"]
    words = ["".join(syllables[int(draw() * 15)] for _ in range(1 + int(draw() * 4))) for _ in range(300)]
    gaps = [" ", " ", "  \n", ", ", "'s ", " 1{} "]

    def word() -> str:
        return gaps[int(draw() ** 2 * 6)].format(int(draw() * 1000)) + words[int(draw() ** 3 * 300)]

    return ["".join(word() for _ in range(150)) for _ in range(documents)]


@pytest.fixture(scope="session")
def texts():
    return invented_texts()


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_bpe(texts, 512)
