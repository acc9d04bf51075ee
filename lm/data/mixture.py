"""Which domain each row of a run comes from: exact shares, by arithmetic alone.

A run's rows are numbered. A stage of the mixture is a range of them with a weight per domain, and is cut into blocks of
consecutive rows. At the end of each block a domain has had the largest-remainder (Hamilton) rounding of its weight times
the rows since the stage began, so it is less than one row off, however long the stage is. Within the block its rows
are spread: row i of its n comes at a moment that the seed draws from the i-th n-th of the block. So any row's domain, and
which of the domain's rows it is, follow from its number: nothing is carried from step to step.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from lm.data.permutation import permute, round_keys
from lm.errors import ConfigError, did_you_mean

BLOCK = 1024  # rows; more where a domain would have less than one of them
_LARGEST = 2**22  # rows in a block: so rare may a domain be

Weight = float | Fraction


def proportional(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return weights by size: every domain is seen as often as any other."""
    return temperature(tokens, 1.0)


def temperature(tokens: Mapping[str, int], tau: float) -> dict[str, float]:
    """Return weights proportional to tokens^(1/tau), which sum to 1: above tau 1 small domains are seen more often.

    Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild" (there tau is T).
    """
    largest = max(tokens.values())
    powers = {domain: (count / largest) ** (1 / tau) for domain, count in tokens.items()}
    return {domain: power / sum(powers.values()) for domain, power in powers.items()}


def fixed(weights: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return weights that sum to 1 from (domain, weight) pairs."""
    given = dict(weights)
    return {domain: weight / sum(given.values()) for domain, weight in given.items()}


def cap_epochs(
    weights: Mapping[str, Weight], rows: Mapping[str, int], max_epochs: Mapping[str, float], total_rows: int
) -> dict[str, Fraction]:
    """Return shares in which no domain is read more often than it may be; what it may not have goes to the others.

    Args:
      weights: of the domains, not all 0.
      rows: of each domain.
      max_epochs: times that a domain may be read in the run; a domain that is not here: any number.
      total_rows: of the run.

    Returns:
      Shares that sum to 1, in proportion to the weights among the domains below their cap.

    Raises:
      ConfigError: the run cannot be filled.
    """
    limits = {domain: int(_exact(epochs) * rows[domain]) for domain, epochs in max_epochs.items() if domain in rows}
    return cap_rows(weights, limits, total_rows)


def cap_rows(weights: Mapping[str, Weight], limits: Mapping[str, int], total_rows: int) -> dict[str, Fraction]:
    """As `cap_epochs`, with the most rows that each domain may have (not in `limits`: any number)."""
    exact = {domain: _exact(weight) for domain, weight in weights.items() if weight}
    shares: dict[str, Fraction] = {}
    while True:
        free = {domain: weight for domain, weight in exact.items() if domain not in shares}
        rest = 1 - sum(shares.values())
        if rest and not free:
            raise ConfigError(
                f"the run reads {total_rows:,} rows of these domains, and their caps leave "
                f"{sum(limits[domain] for domain in exact):,}: raise config.data.max_epochs of {', '.join(exact)}, give "
                "another domain a weight in config.data.mixture, or lower config.optimizer.num_steps."
            )
        wanted = {domain: rest * weight / sum(free.values()) for domain, weight in free.items()}
        over = {
            d: Fraction(limits[d], total_rows)
            for d, share in wanted.items()
            if share * total_rows > limits.get(d, math.inf)
        }
        if not over:
            return {domain: (shares | wanted).get(domain, Fraction(0)) for domain in weights}
        shares |= over


def planned(
    weights: Sequence[tuple[int, Mapping[str, Weight]]],
    rows: Mapping[str, int],
    max_epochs: Mapping[str, float],
    total_rows: int | None,
    seed: int,
) -> "Mixture":
    """Return the mixture of a run.

    Args:
      weights: (first row, weights by domain) of each stage. Where a domain's cap is too small for all of them, earlier
        stages come first.
      rows: of each domain.
      max_epochs: as `cap_epochs`.
      total_rows: of the run; None: not known, and caps are not looked at.
      seed: of the run.

    Raises:
      ConfigError: a domain is not there, the run cannot be filled, or a share is too small.
    """
    for domain in (*(d for _, some in weights for d in some), *max_epochs):
        if domain not in rows:
            raise ConfigError(
                f'the mixture names the domain "{domain}", of which the data has no rows; it has: {", ".join(sorted(rows))}.'
                f"{did_you_mean(domain, rows)}"
            )
    if not max_epochs or total_rows is None:
        return Mixture(weights, seed)
    limits = {domain: int(_exact(epochs) * rows[domain]) for domain, epochs in max_epochs.items()}
    capped: list[tuple[int, Mapping[str, Weight]]] = []
    for number, (first, wanted) in enumerate(weights):
        end = min(weights[number + 1][0], total_rows) if number + 1 < len(weights) else total_rows
        if end <= first:  # no row begins in it
            continue
        had = Mixture(capped, seed, end=first).counts(first) if capped else {}
        left = {domain: limit - had.get(domain, 0) for domain, limit in limits.items()}
        capped.append((first, cap_rows(wanted, left, end - first)))
    return Mixture(capped, seed, end=total_rows)


class Mixture:
    """The domains of a run's rows.

    Attributes:
      domains: those with a weight at any time, sorted.
      stages: (first row, weights by domain) of each stage.
    """

    def __init__(self, stages: Sequence[tuple[int, Mapping[str, Weight]]], seed: int, end: int | None = None):
        """Lay out the stages.

        Args:
          stages: (first row, weights by domain) of each, the first from row 0 on.
          seed: of the order within a block.
          end: rows at which the shares must be met once more; None: no such place.

        Raises:
          ConfigError: a domain's share is too small.
        """
        self.stages = [(first, dict(weights)) for first, weights in stages]
        self.domains = tuple(sorted({d for _, weights in self.stages for d, weight in weights.items() if weight}))
        self._seed = seed
        parts = list(self.stages)
        if end is not None and end > parts[-1][0]:
            parts.append((end, parts[-1][1]))  # what comes after it goes on as before
        firsts = [first for first, _ in parts]
        self._firsts = np.array(firsts, np.int64)
        self._weights = [_integers(weights, self.domains) for _, weights in parts]
        self._blocks = [_block_size(weights, self.domains) for weights in self._weights]
        self._before = [[0] * len(self.domains)]  # rows of each domain before the stage
        for number in range(len(firsts) - 1):
            counts = _rounded(self._weights[number], firsts[number + 1] - firsts[number])
            self._before.append([a + b for a, b in zip(self._before[-1], counts, strict=True)])

    @property
    def hash(self) -> str:
        """Changes with the stages and their weights, the seed and the blocks: 64 hexadecimal digits."""
        about = [self._firsts.tolist(), self.domains, self._weights, self._seed, self._blocks]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (domain, place) of the rows with these numbers: int64 each.

        A domain is an index into `domains`; place i is the domain's row i of the run, from 0.
        """
        numbers = np.asarray(numbers, np.int64)
        domain, place = np.empty_like(numbers), np.empty_like(numbers)
        stage = np.searchsorted(self._firsts, numbers, side="right") - 1
        offset = numbers - self._firsts[stage]
        sizes = np.array(self._blocks, np.int64)
        last = np.append(np.maximum(np.diff(self._firsts) // sizes[:-1], 1) - 1, np.iinfo(np.int64).max)
        block = np.minimum(offset // sizes[stage], last[stage])
        for s, b in np.unique(np.stack([stage, block]), axis=1).T.tolist():
            here = (stage == s) & (block == b)
            domains, places = self._block(s, b)
            within = offset[here] - b * self._blocks[s]
            domain[here], place[here] = domains[within], places[within]
        return domain, place

    def counts(self, rows: int) -> dict[str, int]:
        """Return how many of the first `rows` rows of the run each domain has."""
        stage = int(np.searchsorted(self._firsts, rows, side="right")) - 1
        whole = (rows - int(self._firsts[stage])) // self._blocks[stage]
        if stage < len(self._firsts) - 1:  # the last block of a stage takes what is left over
            length = int(self._firsts[stage + 1] - self._firsts[stage])
            whole = min(whole, max(length // self._blocks[stage], 1) - 1)
        first = int(self._firsts[stage]) + whole * self._blocks[stage]
        counts = _rounded(self._weights[stage], whole * self._blocks[stage])
        domain, _ = self.places(np.arange(first, rows))
        rest = np.bincount(domain, minlength=len(self.domains)).tolist()
        return {d: sum(parts) for d, *parts in zip(self.domains, self._before[stage], counts, rest, strict=True)}

    @functools.lru_cache(maxsize=4)  # noqa: B019 (a run has one mixture)
    def _block(self, stage: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return domain and place of every row of a block."""
        size, weights = self._blocks[stage], self._weights[stage]
        first, end = block * size, (block + 1) * size
        if stage < len(self._firsts) - 1:
            length = int(self._firsts[stage + 1] - self._firsts[stage])
            # The rest of a stage joins its last whole block: a short one might have to take rows back.
            end = end if length - end >= size else length
        before, after = _rounded(weights, first), _rounded(weights, end)
        counts = np.array(after) - np.array(before)
        domain = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(end - first) - np.repeat(np.cumsum(counts) - counts, counts)
        drawn = permute(np.arange(end - first), end - first, round_keys(self._seed, "mixture", stage, block))
        moment = (rank + drawn / (end - first)) / counts[domain]
        order = np.argsort(moment, kind="stable")
        start = np.array(self._before[stage], np.int64) + np.array(before, np.int64)
        return domain[order], (start[domain] + rank)[order]


def _exact(value: Weight | int) -> Fraction:
    """Return a number as it is written: 0.1 is a tenth."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _integers(weights: Mapping[str, Weight], domains: Sequence[str]) -> list[int]:
    exact = [_exact(weights.get(domain, 0)) for domain in domains]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _block_size(weights: Sequence[int], domains: Sequence[str]) -> int:
    """Return a size of which every domain has a row or more, so that its rounded count never falls."""
    rarest, domain = min((weight, domain) for weight, domain in zip(weights, domains, strict=True) if weight)
    size = max(BLOCK, 1 << (-(-sum(weights) // rarest) - 1).bit_length())
    if size > _LARGEST:
        raise ConfigError(
            f'the domain "{domain}" has a share of {rarest / sum(weights):.1g} in the mixture: expected at least '
            f"{1 / _LARGEST:.1g}, or 0."
        )
    return size


def _rounded(weights: Sequence[int], rows: int) -> list[int]:
    """Return the largest-remainder rounding of so many rows' shares; they sum to `rows`."""
    total = sum(weights)
    counts, remainders = zip(*(divmod(rows * weight, total) for weight in weights), strict=True)
    most = sorted(range(len(weights)), key=lambda d: (-remainders[d], d))[: rows - sum(counts)]
    return [count + (d in most) for d, count in enumerate(counts)]
