"""Does a variant beat the baseline, or is it the seeds? Differences paired by seed, held against noise pooled over all.

Runs of one seed share their data order, so a variant's difference to the baseline is taken seed by seed. Three seeds say
almost nothing about the scatter of three differences, but all runs of a sweep together say enough: in the two-way model
value = variant + seed + noise, fitted by least squares over the runs that are there, the residuals of k variants over n
seeds have (k - 1)(n - 1) degrees of freedom, and a mean difference over n seeds has the standard error sqrt(2 s^2 / n).

- Of m variants tried, some would look good by chance. Since all are held against one baseline, their t are correlated;
  Dunnett 1955 ("A multiple comparison procedure for comparing several treatments with a control") gives the
  distribution of the largest |t|, from which intervals and p-values follow that hold for all m at once.
- One noise for all is an assumption. Where a variant (or the baseline) scatters more than the others allow (an F-test at
  5 %), what it takes part in is judged by its own paired differences, a t-test with Bonferroni's correction, if their
  interval is the wider. What scatters beyond all measure (0.1 %: a rate that almost diverges) leaves the pool as well.
- The smallest effect that a sweep could have seen is the true difference that it calls one with probability 0.8.

One variant makes this the paired t-test. experiments/benchmarks/sweep_verdicts.py measures how often the verdicts err.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05  # family-wise: how often a sweep without any difference sees one
POWER = 0.8
SCATTER_LEVEL = 0.05  # below this p a variant is judged by its own scatter too
FALSE_ALARMS = 0.3  # and that in so many variants of a sweep, at most: many variants are tested more strictly
OUTLIER_LEVEL = 0.001  # and below this one its scatter says nothing about the others
_NODES = 129  # of Dunnett's integral over the noise: the trapezium rule is exact to 1e-5 for 1 degree of freedom, 1e-10 for 3

Verdict = Literal["better", "worse", "no difference seen"]
Values = Mapping[str, Mapping[int, float]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """What the seeds say about one variant; lower values are better.

    Attributes:
      variant: its name.
      seeds: those that it has in common with the baseline.
      per_seed: variant - baseline, of each of them.
      mean: of `per_seed`; NaN without any.
      percent: `mean` in percent of the baseline's mean over these seeds.
      low, high: the simultaneous interval of the difference; infinite where nothing can be said.
      p: adjusted for the number of variants; NaN where nothing can be said.
      verdict: None: too few seeds for one.
      smallest: the difference that would be seen with a probability of `POWER`; infinite where none would.
      own_scatter: judged by its own paired differences, because they scatter more.
    """

    variant: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    mean: float
    percent: float
    low: float = -math.inf
    high: float = math.inf
    p: float = math.nan
    verdict: Verdict | None = None
    smallest: float = math.inf
    own_scatter: bool = False


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a sweep says.

    Attributes:
      baseline: the name of what all others are held against.
      baseline_mean: over all of its seeds; NaN if it has none.
      differences: of every other variant, in the order given.
      residual_sd: s, the noise of one run once its variant's and its seed's part are taken out; NaN if unknown.
      seed_sd: how much a seed moves all variants alike; NaN if unknown.
      degrees_of_freedom: of `residual_sd`.
      num_compared: m, the variants that have a verdict.
      unsteady: variants (or the baseline) that scatter more than the others.
      left_out: those of them that scatter so much more that they are not in `residual_sd`.
    """

    baseline: str
    baseline_mean: float
    differences: tuple[Difference, ...]
    residual_sd: float
    seed_sd: float
    degrees_of_freedom: int
    num_compared: int
    unsteady: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def smallest(self) -> float:
        """The smallest effect that the sweep could have seen: the median over its verdicts; infinite without any."""
        known = [difference.smallest for difference in self.differences if difference.verdict]
        return float(np.median(known)) if known else math.inf

    def of(self, variant: str) -> Difference | None:
        """Return a variant's difference; None for the baseline."""
        return next((difference for difference in self.differences if difference.variant == variant), None)


def judge(values: Values, baseline: str, level: float = LEVEL) -> Judgement:
    """Hold every variant against the baseline.

    Args:
      values: variant -> seed -> what is compared, lower being better; what has no finite value is not there.
      baseline: one of the variants.
      level: family-wise.

    Raises:
      ValueError: the baseline is none of the variants.
    """
    if baseline not in values:
        raise ValueError(f'the baseline "{baseline}" is none of the variants {", ".join(values)}')
    values = {name: {seed: v for seed, v in own.items() if math.isfinite(v)} for name, own in values.items()}
    differences = [_difference(values, name, baseline) for name in values if name != baseline]
    judged = [difference for difference in differences if len(difference.seeds) > 1]
    outliers = _outliers(values)
    pool = {name: own for name, own in values.items() if name not in outliers}
    square, degrees, seed_sd = _noise(pool)
    limits = {name: min(SCATTER_LEVEL, FALSE_ALARMS / len(values)) for name in values} | {baseline: SCATTER_LEVEL}
    unsteady = [name for name in values if name in outliers or _scatter_p(pool, name) < limits[name]]
    correlation = _smallest_correlation([difference.seeds for difference in judged])

    def verdict_on(difference: Difference) -> Difference:
        count, family = len(difference.seeds), len(judged)
        if count < 2:
            return difference
        own_square = _exact(np.var(difference.per_seed, ddof=1), values)
        own = _Test(math.sqrt(own_square / count), count - 1, _t_limit(level / family, count - 1))
        test, own_scatter = own, True
        if degrees:
            error, limit = math.sqrt(2 * square / count), dunnett_limit(level, family, degrees, correlation)
            pooled = _Test(error, degrees, limit)
            suspect = baseline in unsteady or difference.variant in unsteady
            own_scatter = suspect and own.half_width > pooled.half_width
            test = own if own_scatter else pooled
        t = abs(difference.mean) / test.error if test.error else math.inf if _exact(difference.mean**2, values) else 0.0
        bonferroni = min(1.0, family * _t_p(t, test.degrees))
        p = bonferroni if own_scatter else dunnett_p(t, family, test.degrees, correlation)
        seen: Verdict = "no difference seen" if t <= test.limit else "better" if difference.mean < 0 else "worse"
        return dataclasses.replace(
            difference,
            low=difference.mean - test.half_width,
            high=difference.mean + test.half_width,
            p=p,
            verdict=seen,
            smallest=test.error * _noncentrality(test.limit, test.degrees),
            own_scatter=own_scatter,
        )

    return Judgement(
        baseline=baseline,
        baseline_mean=_mean(values[baseline].values()),
        differences=tuple(map(verdict_on, differences)),
        residual_sd=math.sqrt(square) if degrees else math.nan,
        seed_sd=seed_sd,
        degrees_of_freedom=degrees,
        num_compared=len(judged),
        unsteady=tuple(unsteady),
        left_out=tuple(outliers),
    )


@dataclasses.dataclass(frozen=True)
class _Test:
    """A t-test: the standard error, its degrees of freedom, and what |t| must exceed."""

    error: float
    degrees: int
    limit: float

    @property
    def half_width(self) -> float:
        return self.limit * self.error


def _difference(values: Values, variant: str, baseline: str) -> Difference:
    own, of_baseline = values[variant], values[baseline]
    seeds = tuple(sorted(own.keys() & of_baseline.keys()))
    per_seed = tuple(own[seed] - of_baseline[seed] for seed in seeds)
    mean, reference = _mean(per_seed), _mean(of_baseline[seed] for seed in seeds)
    return Difference(variant, seeds, per_seed, mean, 100 * mean / reference if reference else math.nan)


def _mean(numbers) -> float:
    listed = list(numbers)
    return math.fsum(listed) / len(listed) if listed else math.nan


def _exact(square: float, values: Values) -> float:
    """Return a variance, or zero where it is no more than rounding."""
    largest = max((abs(v) for own in values.values() for v in own.values()), default=0.0)
    return float(square) if square > (1e-13 * largest) ** 2 else 0.0


def _noise(values: Values) -> tuple[float, int, float]:
    """Fit the two-way model; return the residual variance, its degrees of freedom, and the seeds' standard deviation."""
    squares, degrees = _residuals(values)
    if degrees == 0:
        return math.nan, 0, math.nan
    square = _exact(squares / degrees, values)
    common = sorted(set.intersection(*(set(own) for own in values.values())))
    if len(common) < 2:
        return square, degrees, math.nan
    seed_means = [_mean(own[seed] for own in values.values()) for seed in common]
    return square, degrees, math.sqrt(max(0.0, float(np.var(seed_means, ddof=1)) - square / len(values)))


def _residuals(values: Values) -> tuple[float, int]:
    """Return the residual sum of squares of value = variant + seed, and its degrees of freedom."""
    seeds = sorted({seed for own in values.values() for seed in own})
    if seeds and all(len(own) == len(seeds) for own in values.values()):  # no run is missing: nothing to solve
        table = np.array([[own[seed] for seed in seeds] for own in values.values()])
        table -= table.mean()
        table -= table.mean(1, keepdims=True) + table.mean(0, keepdims=True)
        return float(np.sum(table**2)), (len(values) - 1) * (len(seeds) - 1)
    cells = [(row, seeds.index(seed), v) for row, own in enumerate(values.values()) for seed, v in own.items()]
    if not cells:
        return 0.0, 0
    design = np.zeros((len(cells), len(values) + len(seeds)))
    for index, (row, column, _) in enumerate(cells):
        design[index, row] = design[index, len(values) + column] = 1
    target = np.array([v for _, _, v in cells])
    fitted, _, rank, _ = np.linalg.lstsq(design, target - target.mean(), rcond=None)
    return float(np.sum((target - target.mean() - design @ fitted) ** 2)), len(cells) - int(rank)


def _scatter_p(values: Values, variant: str) -> float:
    """Return the p-value of an F-test of whether a variant scatters more than the others; 1 where there is no telling.

    Without its runs the residual sum of squares falls by what they add, which is held against what is left.
    """
    squares, degrees = _residuals(values)
    without, left = _residuals({other: own for other, own in values.items() if other != variant})
    if not 0 < left < degrees:
        return 1.0
    added, pooled = _exact((squares - without) / (degrees - left), values), _exact(without / left, values)
    ratio = added / pooled if pooled else math.inf if added else 0.0
    return float(special.fdtrc(degrees - left, left, ratio)) if math.isfinite(ratio) else 0.0


def _outliers(values: Values) -> list[str]:
    """Return the variants that scatter beyond all measure.

    The wildest is taken out, then the wildest of the rest, up to half of them. The last that stands out marks all before
    it too, for two that are wild hide each other (Rosner 1983, "Percentage points for a generalized ESD many-outlier
    procedure").
    """
    kept, removed, marked = dict(values), [], 0
    while len(removed) < len(values) // 2:
        p, wildest = min((_scatter_p(kept, name), name) for name in kept)
        if p == 1:
            break
        removed.append(wildest)
        del kept[wildest]
        if p < OUTLIER_LEVEL:
            marked = len(removed)
    return removed[:marked]


def _smallest_correlation(seeds: Sequence[tuple[int, ...]]) -> float:
    """Return the smallest correlation of two mean differences: 1/2 where all have the same seeds, less where not.

    The smaller, the larger the limit (Sidak 1967): with the smallest for all, the level is kept.
    """
    return min(
        (
            len(set(one) & set(other)) / (2 * math.sqrt(len(one) * len(other)))
            for index, one in enumerate(seeds)
            for other in seeds[:index]
        ),
        default=0.5,
    )


def _t_p(t: float, degrees: int) -> float:
    """Return the two-sided p-value of one t."""
    return 2 * float(special.stdtr(degrees, -abs(t)))


def _t_limit(level: float, degrees: int) -> float:
    """Return what one |t| exceeds with probability `level`."""
    return -float(special.stdtrit(degrees, level / 2))


def dunnett_p(t: float, family: int, degrees: int, correlation: float = 0.5) -> float:
    """Return the probability that the largest of `family` |t| exceeds t, if there is no difference.

    Given the noise estimate u = s / sigma and the baseline's part z, the t are independent; both are integrated out.

    Args:
      t: a |t| value.
      family: m, how many are held against the one baseline.
      degrees: of freedom of s.
      correlation: of any two differences; 1/2 if each has as many runs as the baseline.
    """
    if family == 1 or t == 0 or math.isinf(t):
        return _t_p(t, degrees)
    log_u, weight_u, z, weight_z = _nodes(degrees)
    shift, scale = math.sqrt(correlation) * z[None, :], math.sqrt(1 - correlation)
    bound = t * np.exp(log_u)[:, None]
    outside = special.ndtr((-bound - shift) / scale) + special.ndtr((-bound + shift) / scale)
    any_outside = -np.expm1(family * np.log1p(-np.minimum(outside, 1 - 1e-16)))
    return float(np.clip(weight_u @ any_outside @ weight_z, 0, 1))


@functools.lru_cache(maxsize=64)
def _nodes(degrees: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return log u with weights (u^2 is chi-squared over its degrees of freedom) and standard normal z with weights."""
    chi = stats.chi2(degrees)
    low, high = 0.5 * np.log(np.array([chi.ppf(1e-14), chi.isf(1e-14)]) / degrees)
    log_u = np.linspace(low, high, _NODES)
    density = np.exp(chi.logpdf(degrees * np.exp(2 * log_u)) + 2 * log_u)
    z = np.linspace(-8.5, 8.5, _NODES // 2)
    weight_z = stats.norm.pdf(z)
    return log_u, density / density.sum(), z, weight_z / weight_z.sum()


@functools.lru_cache(maxsize=1024)
def dunnett_limit(level: float, family: int, degrees: int, correlation: float = 0.5) -> float:
    """Return what the largest of `family` |t| exceeds with probability `level`, if there is no difference."""
    low, high = _t_limit(level, degrees), _t_limit(level / family, degrees)
    if family == 1:
        return low
    return float(optimize.brentq(lambda t: dunnett_p(t, family, degrees, correlation) - level, 0.99 * low, 1.01 * high))


@functools.lru_cache(maxsize=1024)
def _noncentrality(limit: float, degrees: int) -> float:
    """Return the true difference, in standard errors, at which |t| exceeds `limit` with probability `POWER`."""

    log_u, weight_u, _, _ = _nodes(degrees)
    bound = limit * np.exp(log_u)

    def lacking(shift: float) -> float:
        return float(weight_u @ (special.ndtr(shift - bound) + special.ndtr(-shift - bound))) - POWER

    return float(optimize.brentq(lacking, 0.0, 4 * limit + 10, xtol=1e-6))
