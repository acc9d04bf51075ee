"""Is B better than A? A paired, studentized bootstrap over the items, held against the randomization test.

Two models are scored on the same documents or questions, so what counts is the difference per item, and the items are
what chance has drawn (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"). With d_i the
difference of an item's sums and w_i its weight (its bytes; 1 for a question), the difference is D = sum d / sum w, its
standard error that of a ratio, SE^2 = n / (n - 1) * sum (d_i - D w_i)^2 / (sum w)^2, and t = D / SE. How large |t| gets
by chance is asked in two ways:

- the bootstrap: n items drawn again with replacement, t_r = (D_r - D) / SE_r (bootstrap-t: Efron and Tibshirani 1993,
  chapters 12 and 16, with |t_r| as in Hall 1988). A resample whose items do not vary counts as infinite.
- the randomization test: A and B swapped at random in each item (Noreen 1989). Exact for any number of items if the two
  are alike; the bootstrap finds too much in few items of very different sizes (Riezler and Maxwell 2005; measured, too).

The larger answer is taken of both: p is the larger p, and the interval D ± q SE has the larger 95 % quantile q, so it
leaves out 0 just where p < 0.05. experiments/benchmarks/compare_power.py measures how often that errs and what it finds.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the items say about A and B.

    Attributes:
      a, b: the two figures, weighted means over the items.
      difference: b - a.
      low, high: the interval of the difference.
      p: how often chance alone gives a difference as large, were there none.
      items: how many were compared.
      differing: how many of them differ.
      confidence: of the interval.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    items: int
    differing: int
    confidence: float

    @property
    def is_significant(self) -> bool:
        return self.p < 1 - self.confidence

    def better(self, higher_is_better: bool) -> str | None:
        """Return `A`, `B`, or None where the items do not tell."""
        if not self.is_significant:
            return None
        return "B" if (self.difference > 0) == higher_is_better else "A"

    def verdict(self, unit: str, items: str, *, higher_is_better: bool) -> str:
        """Return one line: who is better, by how much, how sure.

        Args:
          unit: of the figures, e.g. `bits per byte`.
          items: what was compared, e.g. `documents`.
          higher_is_better: whether more of them is good.
        """
        percent = f"{100 * self.confidence:.0f} %"
        sure = f"{percent} interval {self.low:+.4g} to {self.high:+.4g}, p {_p(self.p)}, {self.items:,} {items}"
        if not self.differing:
            return f"no difference: the same in all {self.items:,} {items}"
        better = self.better(higher_is_better)
        if better is None:
            return f"no difference is shown: B - A = {self.difference:+.4g} {unit} ({sure})"
        return f"{better} is better: B - A = {self.difference:+.4g} {unit} ({sure})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def compare(
    a: Sequence[float],
    b: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same items.

    Args:
      a, b: `[n]`, the sum of each item: whether it was answered rightly; its negative log-likelihood.
      weights: `[n]`, what the sums are divided by in all (bytes); None: 1 each.
      resamples: R.
      confidence: of the interval; above it a difference is significant.
      seed: of the resamples: the same items give the same answer.

    Raises:
      ValueError: fewer than two items, lists of different lengths, no weight at all, or a sum that is not finite.
    """
    a_n, b_n = np.asarray(a, float), np.asarray(b, float)
    w_n = np.ones(len(a_n)) if weights is None else np.asarray(weights, float)
    if not len(a_n) == len(b_n) == len(w_n) or len(a_n) < 2 or not w_n.sum() > 0:
        raise ValueError(f"{len(a_n)}, {len(b_n)} and {len(w_n)} items: expected as many of each, two or more")
    if not (np.isfinite(a_n).all() and np.isfinite(b_n).all()):
        raise ValueError("items whose sums are not finite cannot be compared")
    n, weight = len(a_n), w_n.sum()
    d_n = b_n - a_n
    difference = d_n.sum() / weight
    figures = {"a": float(a_n.sum() / weight), "b": float(b_n.sum() / weight), "difference": float(difference)}
    about = {"items": n, "differing": int(np.count_nonzero(d_n)), "confidence": confidence}
    error = float(_standard_error(np.sum((d_n - difference * w_n) ** 2), n, weight))
    varies = error > 1e-12 * float(np.abs(d_n).max(initial=0)) / weight
    observed = abs(difference) / error if varies else math.inf if about["differing"] else 0.0
    draw = np.random.default_rng(seed)
    tails = [_swapped_t(d_n, w_n, resamples, draw)]
    if varies:
        tails.append(_resampled_t(d_n - difference * w_n, w_n, resamples, draw))
    # Swapping none is among the swaps: it must count, whatever the last digits of its sums are.
    p = max((1 + np.count_nonzero(t_r >= observed * (1 - 1e-6))) / (1 + resamples) for t_r in tails)
    if varies:
        reach = max(_quantile(t_r, 1 - confidence) for t_r in tails) * error * (1 + 1e-6)
    else:  # t is infinite, so is what chance reaches
        reach = math.inf if about["differing"] and p >= 1 - confidence else 0.0
    return Comparison(**figures, low=float(difference - reach), high=float(difference + reach), p=float(p), **about)


def _quantile(t_r: np.ndarray, level: float) -> float:
    """Return the smallest |t| whose p is below the level."""
    extreme = math.ceil(level * (1 + len(t_r))) - 2  # as many may be as large
    return float(np.sort(t_r)[-1 - extreme]) if extreme >= 0 else math.inf


def _standard_error(sum_of_squares, n: int, weight):
    return np.sqrt(n / (n - 1) * sum_of_squares) / weight


def _abs_t(n: int, d, dd, dw, w, ww) -> np.ndarray:
    """Return |t| from sums over n items: of d, d^2, d w, w and w^2; infinite where the items do not vary."""
    w = np.where(w > 0, w, math.inf)  # only items without a byte: they show no difference
    ratio = d / w
    squares = np.where(np.isfinite(w), dd - 2 * ratio * dw + ratio**2 * np.where(np.isfinite(w), ww, 0), 0)
    varies = squares > 1e-9 * dd
    return np.where(varies, np.abs(ratio) / _standard_error(np.where(varies, squares, 1), n, w), math.inf)


def _chunks(resamples: int, n: int) -> Iterator[int]:
    chunk = max(1, _CHUNK_BYTES // (8 * n))
    yield from (min(chunk, resamples - first) for first in range(0, resamples, chunk))


def _resampled_t(residual_n: np.ndarray, w_n: np.ndarray, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """Return |t| of each bootstrap resample, `[R]`. Residuals move D to 0 and change no t."""
    n, parts = len(w_n), []
    moments = np.stack([residual_n, residual_n**2, residual_n * w_n, w_n, w_n**2], -1)
    for size in _chunks(resamples, n):
        drawn_rn = draw.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts_rn = np.bincount(drawn_rn.reshape(-1), minlength=size * n).reshape(size, n)
        parts.append(_abs_t(n, *(counts_rn @ moments).T))
    return np.concatenate(parts)


def _swapped_t(d_n: np.ndarray, w_n: np.ndarray, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """Return |t| with A and B swapped at random in each item, `[R]`."""
    n, parts = len(w_n), []
    moments, dd, w, ww = np.stack([d_n, d_n * w_n], -1), np.sum(d_n**2), np.sum(w_n), np.sum(w_n**2)
    for size in _chunks(resamples, n):
        d, dw = ((2 * draw.integers(2, size=(size, n)) - 1) @ moments).T
        parts.append(_abs_t(n, d, dd, dw, w, ww))
    return np.concatenate(parts)
