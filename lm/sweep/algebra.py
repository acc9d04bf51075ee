"""What a sweep file is made of: variants of a config, combined like sets.

A file of `experiments/sweeps/` exposes `get_sweep()`, which returns a `Sweep`:

    def get_sweep():
        return Sweep(
            config="../tiny.py",
            variants=product(sweep("model.activation", ["swiglu", "gelu"]), sweep("model.num_layers", [2, 4])),
            baseline="gelu num_layers=4",
        )

Every function here returns a list of `Variant`, so each can be the argument of each.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lm.errors import ConfigError

MATCHES = ("tokens", "flops", "bytes", "seconds", "steps")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Fields of a config, and what this choice of them is called."""

    name: str
    overrides: Mapping[str, Any]  # config path -> value: {"model.num_layers": 8}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Variants of one config, each trained with the same seeds, compared with one of them.

    What is `match`ed is what all variants get as much of as the config without overrides would: training `tokens`,
    model `flops` or `bytes` of text (by the number of steps, and the warmup in proportion), or `seconds` of training
    on this machine at the baseline's speed (each variant's is measured first); `steps` leaves every config as it is. A variant that
    sets `optimizer.num_steps` is left as it is too.
    """

    config: str  # a config file, beside the sweep's file
    variants: Sequence[Variant]
    baseline: str  # the variant that the others are compared with
    seeds: Sequence[int] = (0, 1, 2)  # of initialization and data order, the same for all variants
    match: str = "tokens"
    metric: str = "bits_per_byte"  # of the validation at the last step, less is better
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of the config for all variants

    def __post_init__(self):
        names = [variant.name for variant in self.variants]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f'the sweep has two variants "{min(twice)}"; rename one with `named`.')
        if self.baseline not in names:
            raise ConfigError(
                f'the sweep\'s baseline "{self.baseline}" is not one of its variants: {", ".join(names)}.'
            )
        if self.match not in MATCHES:
            raise ConfigError(f"the sweep's match={self.match!r}: expected one of {', '.join(MATCHES)}.")
        if self.metric not in ("bits_per_byte", "loss"):
            raise ConfigError(f"the sweep's metric={self.metric!r}: expected bits_per_byte or loss.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"the sweep's seeds={tuple(self.seeds)!r}: expected one or more, each once.")


@dataclasses.dataclass(frozen=True)
class Search:
    """A space in which a good config is looked for, one trial after the other; a file exposes it as `get_search()`."""

    config: str  # a config file, beside the search's file
    space: Mapping[str, "Uniform | Choice"]  # config path -> its values
    trials: int = 30
    metric: str = "bits_per_byte"  # of the validation, less is better
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of the config for all trials
    seed: int = 0  # of what is proposed; the runs have the config's

    def __post_init__(self):
        if not self.space or not all(isinstance(values, Uniform | Choice) for values in self.space.values()):
            raise ConfigError("the search's space: expected one or more config paths with a Uniform or a Choice each.")
        if self.metric not in ("bits_per_byte", "loss"):
            raise ConfigError(f"the search's metric={self.metric!r}: expected bits_per_byte or loss.")
        if self.trials < 1:
            raise ConfigError(f"the search's trials={self.trials!r}: expected 1 or more.")


def sweep(path: str, values: Sequence[Any]) -> list[Variant]:
    """Return one variant per value of a field, named after the value (a text) or the field and the value."""
    field = path.rsplit(".", 1)[-1]
    return [Variant(value if isinstance(value, str) else f"{field}={_short(value)}", {path: value}) for value in values]


def named(name: str, overrides: Mapping[str, Any] | None = None) -> list[Variant]:
    """Return one variant with a name of its own; without overrides it is the config as it is."""
    return [Variant(name, dict(overrides or {}))]


def product(*parts: Sequence[Variant]) -> list[Variant]:
    """Return every combination of one variant from each part, the last part changing fastest."""
    return [_merge(chosen) for chosen in itertools.product(*parts)]


def zipped(*parts: Sequence[Variant]) -> list[Variant]:
    """Return the first variants of all parts combined, then the second ones, and so on.

    Raises:
      ConfigError: the parts have different lengths.
    """
    if len({len(part) for part in parts}) > 1:
        raise ConfigError(f"zipped: the parts have {', '.join(str(len(part)) for part in parts)} variants.")
    return [_merge(chosen) for chosen in zip(*parts, strict=True)]


def chain(*parts: Sequence[Variant]) -> list[Variant]:
    """Return the variants of all parts, one part after the other."""
    return [variant for part in parts for variant in part]


def seeds(count: int) -> tuple[int, ...]:
    """Return the first `count` seeds."""
    return tuple(range(count))


class Distribution(Protocol):
    """A field's values, as a random search draws them."""

    def draw(self, random: np.random.Generator) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Numbers between two bounds, evenly spread over them or over their logarithm, as whole numbers if so asked."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(f"{self}: expected low < high" + (", both above 0." if self.log else "."))

    def draw(self, random: np.random.Generator) -> float | int:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return int(random.integers(int(low), int(high) + 1))
        value = random.uniform(low, high)
        value = math.exp(value) if self.log else value
        return round(value) if self.integer else float(f"{value:.4g}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        return self.values[int(random.integers(len(self.values)))]


def sample(count: int, space: Mapping[str, Distribution], seed: int = 0) -> list[Variant]:
    """Return `count` variants drawn at random (Bergstra and Bengio 2012); the first ones stay when `count` grows.

    Args:
      count: how many.
      space: config path -> `Uniform` or `Choice`.
      seed: of the draws.
    """
    random = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        drawn = [sweep(path, [distribution.draw(random)])[0] for path, distribution in space.items()]
        out.append(_merge(drawn))
    return out


def _merge(variants: Sequence[Variant]) -> Variant:
    overrides: dict[str, Any] = {}
    for variant in variants:
        if both := overrides.keys() & variant.overrides.keys():
            raise ConfigError(f"two parts of the sweep set {min(both)}.")
        overrides |= variant.overrides
    return Variant(" ".join(variant.name for variant in variants if variant.name), overrides)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace(" ", "")
