"""Training a byte-level BPE tokenizer with rustbpe."""

from collections.abc import Callable, Iterable, Iterator

from lm.errors import UsageError
from lm.tokenizer.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer, regex_safe_pieces, valid_unicode


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt4",
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Learn byte-pair merges (Sennrich et al. 2016, over bytes as in GPT-2) from texts.

    Args:
      texts: the documents to learn from.
      vocab_size: V, ids in all: 256 bytes, the merges and `<|endoftext|>`, which gets the last id.
      pattern: `gpt4` or `gpt2`, a name in `PATTERNS`.
      progress: called with the characters read so far.

    Raises:
      UsageError: the pattern is unknown, `vocab_size` is below 257, or the texts have too few
        distinct pairs for so many merges.
    """
    if pattern not in PATTERNS:
        raise UsageError(f"unknown tokenizer pattern {pattern!r}: expected one of {', '.join(PATTERNS)}.")
    if vocab_size < 257:
        raise UsageError(f"a vocabulary of {vocab_size} is too small: 256 bytes and {END_OF_TEXT} need 257.")
    import rustbpe

    characters = 0

    def pieces() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield from regex_safe_pieces(valid_unicode(text))
            if progress:
                progress(characters)

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(pieces(), vocab_size - 1, pattern=PATTERNS[pattern])
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - 1:
        raise UsageError(
            f"a text of {characters:,} characters gives only {len(ranks) - 256:,} merges, too few for a vocabulary "
            f"of {vocab_size:,}; ask for at most {len(ranks) + 1:,}, or give more text."
        )
    training = {"trainer": "rustbpe", "pattern": pattern, "characters": characters}
    return Tokenizer(f"bpe{vocab_size}-{pattern}", PATTERNS[pattern], ranks, {END_OF_TEXT: vocab_size - 1}, training)
