"""How often `lm eval --compare` errs, and what it finds: simulated items with and without a difference.

    python experiments/benchmarks/compare_power.py

2,000 simulations per line, about 7 minutes on one busy CPU core. "errs" is how often two equal models are told apart at
the 5 % level; "finds" how often the difference named is found; "covers" how often the 95 % interval holds it.

    items                 errs  difference   finds  covers
    10 documents         0.025        0.03   0.347   0.972
    30 documents         0.043        0.02   0.484   0.959
    100 documents        0.042        0.01   0.415   0.957
    50 questions         0.017        0.15   0.610   0.965
    200 questions        0.042        0.08   0.676   0.956
    1000 questions       0.043        0.04   0.779   0.955
    20 skewed items      0.059         0.8   0.886   0.941
    100 skewed items     0.045         0.3   0.860   0.954
"""

import argparse
from collections.abc import Callable

import numpy as np

from lm.evaluate.compare import compare

Draw = np.random.Generator
Items = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def documents(n: int, shift: float, spread: float = 0.03) -> Callable[[Draw], Items]:
    """Documents of lognormal sizes; the difference per byte is `shift` ± `spread` in each."""

    def items(draw: Draw) -> Items:
        sizes = 2000 * draw.lognormal(0, 1.2, n)
        a = sizes * draw.normal(1.0, 0.2, n)
        return a, a + sizes * draw.normal(shift, spread, n), sizes

    return items


def questions(n: int, gain: float, differing: float = 0.2) -> Callable[[Draw], Items]:
    """Questions of which a share `differing` is answered rightly by one model only, B having `gain` more of them."""

    def items(draw: Draw) -> Items:
        kind = draw.random(n)
        b_only, a_only = (differing + gain) / 2, (differing - gain) / 2
        both = (kind > b_only + a_only) & (kind < 0.6)
        b = both | (kind < b_only)
        a = both | ((kind >= b_only) & (kind < b_only + a_only))
        return a.astype(float), b.astype(float), None

    return items


def skewed(n: int, shift: float) -> Callable[[Draw], Items]:
    """Differences that lean to one side though their mean is `shift`: what neither test is made for."""
    return lambda draw: (np.zeros(n), draw.exponential(1.0, n) - 1 + shift, None)


CASES = [
    *((f"{n} documents", documents(n, 0.0), documents(n, shift), shift) for n, shift in ((10, 0.03), (30, 0.02), (100, 0.01))),
    *((f"{n} questions", questions(n, 0.0), questions(n, gain), gain) for n, gain in ((50, 0.15), (200, 0.08), (1000, 0.04))),
    *((f"{n} skewed items", skewed(n, 0.0), skewed(n, shift), shift) for n, shift in ((20, 0.8), (100, 0.3))),
]  # fmt: skip


def rates(make: Callable[[Draw], Items], truth: float, simulations: int, resamples: int) -> tuple[float, float]:
    """Return how often a difference is found, and how often the interval holds the truth."""
    draw, found, covered = np.random.default_rng(0), 0, 0
    for seed in range(simulations):
        result = compare(*make(draw), resamples=resamples, seed=seed)
        found += result.is_significant
        covered += result.low <= truth <= result.high
    return found / simulations, covered / simulations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=999)
    args = parser.parse_args()
    print(f"{'items':<18}{'errs':>8}{'difference':>12}{'finds':>8}{'covers':>8}")
    for name, null, other, difference in CASES:
        errs, _ = rates(null, 0.0, args.simulations, args.resamples)
        finds, covers = rates(other, difference, args.simulations, args.resamples)
        print(f"{name:<18}{errs:>8.3f}{difference:>12}{finds:>8.3f}{covers:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
