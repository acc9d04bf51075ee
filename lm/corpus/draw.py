"""Chance that repeats itself: numbers that depend on what they are for and nothing else."""

import hashlib


def point(*parts: str) -> float:
    """Return a number in [0, 1) that the parts decide, the same on every machine and in any order of work."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
