"""The learning-rate finder: a range test, and a short search around what it suggests.

The range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3) trains a copy of the
state while the learning rate grows exponentially, once from too small to too large, and reads a good one off the curve
of the loss. The short search then trains a few rates around it for a fraction of the run, with the schedule compressed
into that fraction, on the same batches.

The learning rate is an input of the compiled step, so that all of this runs one program: the one that trains.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import hosts
from lm.config import Config
from lm.train.step import BuiltStep, TrainState, step_scalars

LOW, HIGH, NUM_STEPS = 1e-5, 1.0, 100  # of the ramp
RAMP_RULE = "steepest"  # what the ramp alone suggests; the others were further off where they were wrong
NUM_RATES, RATIO = 5, 2.0  # of the short search: rates, and from one to the next
HORIZON, FEWEST_STEPS = 8, 20  # a short run has an eighth of the run's steps, and no fewer than these
_MOST_EXTENSIONS = 3  # of the short search, while its suggestion is its lowest rate or its best the highest
_TOLERANCE = 0.01  # of the best short run's loss
_SMOOTHING = 0.05  # time constant of the smoothing, as a share of the ramp
_DIVERGED = 1.5  # times the smallest smoothed loss
_SKIP_START, _SKIP_END = 0.1, 0.05  # shares of the curve that no rule looks at
_SCORED = 0.25  # share of a short run whose mean loss is its score

Batch = Callable[[int], Any]  # the placed batch of a step
Progress = Callable[[int, int], None]  # steps done, of how many


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The ramp's curve: one entry per step, from the lowest learning rate on."""

    learning_rates: np.ndarray  # f64 [steps]
    losses: np.ndarray  # f64 [steps], nats per token, of the batch before its step
    ended: str  # `diverged`, `not_finite`, or `high`: the last learning rate was reached
    num_steps: int  # that the whole ramp has

    @functools.cached_property
    def smoothed(self) -> np.ndarray:
        """The losses smoothed forwards and then backwards, so that the curve is not moved to the right, f64 [steps]."""
        beta = _smoothing(self.num_steps)
        return _smooth(_smooth(self.losses, beta)[::-1], beta)[::-1]

    @property
    def trimmed(self) -> slice:
        """The part of the curve that the rules look at."""
        steps = len(self.losses)
        return slice(round(_SKIP_START * steps), max(steps - round(_SKIP_END * steps), 1))

    @property
    def _fall(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates and smoothed losses of the trimmed curve up to its minimum: what falls later has diverged before."""
        rates, losses = self.learning_rates[self.trimmed], self.smoothed[self.trimmed]
        end = int(np.argmin(losses)) + 1
        return rates[:end], losses[:end]

    def suggestions(self) -> dict[str, float]:
        """Return a learning rate by each rule, read off the trimmed curve; empty if the loss does not fall there.

        - `steepest`: where the smoothed loss falls fastest over the logarithm of the rate.
        - `valley`: two thirds along the longest stretch over which it falls without a break (fastai's).
        - `minimum`: a tenth of the rate at its minimum.
        """
        rates, losses = self._fall
        if len(rates) < 3:
            return {}
        first, last = _longest_descent(losses)
        return {
            "steepest": float(rates[np.argmin(np.gradient(losses, np.log(rates)))]),
            "valley": float(rates[first + round(2 / 3 * (last - first))]),
            "minimum": float(rates[-1] / 10),
        }

    @property
    def is_still_falling(self) -> bool:
        """Whether the ramp was at its end before the loss was at its minimum."""
        return self.ended == "high" and bool(np.argmin(self.smoothed) >= len(self.smoothed) - 3)

    def record(self) -> dict[str, Any]:
        """Return the curve as plain data."""
        columns = zip(self.learning_rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)
        return {
            "low": float(self.learning_rates[0]),
            "num_steps": self.num_steps,
            "ended": self.ended,
            "trimmed": [self.trimmed.start, self.trimmed.stop],
            "points": [dict(zip(("learning_rate", "loss", "smoothed"), column, strict=True)) for column in columns],
        }


def range_test(
    built: BuiltStep,
    batch: Batch,
    config: Config,
    *,
    low: float = LOW,
    high: float = HIGH,
    num_steps: int = NUM_STEPS,
    start: Callable[[], TrainState] | None = None,
    progress: Progress = lambda done, total: None,
) -> RangeTest:
    """Train while the learning rate grows from `low` to `high`, and return the curve of the loss.

    The rates are absolute, not relative to the config's: a wrong rate in the config does not move the range away
    from the good ones. Warmup and schedule are ignored.

    It ends early when the loss is not finite, or when the smoothed loss is above both where it began and 1.5
    times its minimum. (fastai waits for 4 times the minimum. A language model's loss begins at log(V), so that it is
    rarely more than twice its minimum, and a soft cap bounds it.)

    Args:
      built: the compiled step, of this config.
      batch: gives the placed batch of each step.
      config: resolved; its rates are replaced, `adam_learning_rate` in proportion.
      low, high: the first and the last learning rate.
      num_steps: of the ramp.
      start: makes the state to begin with, one that may be donated; None: a fresh initialization.
      progress: called after each step.
    """
    beta, rates, losses = _smoothing(num_steps), np.geomspace(low, high, num_steps), []
    state, ended, smallest = (start or built.init)(), "high", math.inf
    for step, rate in enumerate(rates):
        scalars = step_scalars(at_constant_rate(config, float(rate)), step)
        state, metrics = built.step(state, batch(step), hosts.replicate(built.mesh, scalars))
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            ended = "not_finite"
            break
        losses.append(loss)
        progress(step + 1, num_steps)
        smoothed = _smooth(np.array(losses), beta)[-1]
        smallest = min(smallest, smoothed)
        if smoothed > max(losses[0], _DIVERGED * smallest):
            ended = "diverged"
            break
    return RangeTest(rates[: len(losses)], np.array(losses), ended, num_steps)


@dataclasses.dataclass(frozen=True)
class Search:
    """Short runs, in the order of their learning rates.

    The suggestion is not the best rate but the lowest one that is within 1 % of it: short runs are nearly as good far
    above the rate that is best for long ones, where those lose. (A small model with AdamW, 400 steps: 0.008 is best and
    0.016 14 % worse; after 25, 50 and 100 steps 0.016 is the best, 0.2 % and 5 % worse.)
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # nats per token, at the end of the run; infinite: one was not finite
    num_steps: int  # of each run

    def suggestion(self) -> float | None:
        """Return the lowest rate whose loss is within 1 % of the best one; None if no run's loss was finite."""
        place = _lowest_good(self.losses)
        return self.rates[place] if math.isfinite(self.losses[place]) else None

    def record(self) -> dict[str, Any]:
        """Return the runs as plain data."""
        runs = zip(self.rates, self.losses, strict=True)
        points = [{"learning_rate": rate, "loss": loss} for rate, loss in runs]
        return {"num_steps": self.num_steps, "points": points}


def search_from(
    built: BuiltStep,
    batch: Batch,
    config: Config,
    first: float,
    *,
    num_rates: int = NUM_RATES,
    num_steps: int | None = None,
    start: Callable[[], TrainState] | None = None,
    together: bool = False,
    progress: Progress = lambda done, total: None,
) -> Search:
    """Run `short_search` at rates a factor of 2 apart, and go on where the answer lies at their edge.

    Args:
      built, batch, config, start, together, progress: as of `short_search`.
      first: the lowest rate: the ramp's steepest fall. The best one is at or above it.
      num_rates: up to 3 more follow, one by one, until the suggestion is not the lowest nor the best the highest.
      num_steps: of each run; None: an eighth of the config's, and at least 20.
    """
    whole = config.optimizer.num_steps
    num_steps = num_steps or min(whole, max(FEWEST_STEPS, round(whole / HORIZON)))
    shared = {"num_steps": num_steps, "start": start}
    rates = [first * RATIO**number for number in range(num_rates)]
    losses = short_search(built, batch, config, rates, together=together, progress=progress, **shared)
    for _ in range(_MOST_EXTENSIONS):
        lowest_good, best = _lowest_good(losses), int(np.argmin(losses))
        if lowest_good > 0 and best < len(rates) - 1:
            break
        at, rate = (0, rates[0] / RATIO) if lowest_good == 0 else (len(rates), rates[-1] * RATIO)
        before = num_steps * len(rates)
        on = lambda done, total, before=before: progress(before + done, before + total)  # noqa: E731
        losses[at:at] = short_search(built, batch, config, [rate], progress=on, **shared)
        rates.insert(at, rate)
    return Search(tuple(rates), tuple(losses), num_steps)


def _lowest_good(losses: Sequence[float]) -> int:
    """Return the first place whose loss is within 1 % of the smallest."""
    return next(place for place, loss in enumerate(losses) if loss <= (1 + _TOLERANCE) * min(losses))


def short_search(
    built: BuiltStep,
    batch: Batch,
    config: Config,
    rates: Sequence[float],
    *,
    num_steps: int,
    start: Callable[[], TrainState] | None = None,
    together: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[float]:
    """Train every rate for `num_steps` steps on the same batches, the schedule compressed into them; return scores.

    A score is the mean training loss of the last quarter, in nats per token; infinite where a loss was not finite.

    Args:
      built, batch, config, start, progress: as of `range_test`.
      rates: peaks of the schedule.
      num_steps: of each rate.
      together: all rates side by side in one program (`vmap`), for one device; else one after the other, in the
        program that is compiled already. On 2 CPU cores side by side is slower, at the size of `experiments/tiny.py`
        and at a much smaller one (`experiments/benchmarks/lr_finder.py --vmap`).
    """
    start = start or built.init
    configs = [compressed(config, num_steps, rate) for rate in rates]
    curves = np.full((len(rates), num_steps), np.inf)
    if together:
        step_fn = side_by_side(built)
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start() for _ in rates])
        for step in range(num_steps):
            scalars = jax.tree.map(lambda *values: np.stack(values), *[step_scalars(c, step) for c in configs])
            states, metrics = step_fn(states, batch(step), hosts.replicate(built.mesh, scalars))
            curves[:, step] = metrics["loss"]
            progress((step + 1) * len(rates), num_steps * len(rates))
    else:
        for number, own in enumerate(configs):
            state = start()
            for step in range(num_steps):
                scalars = hosts.replicate(built.mesh, step_scalars(own, step))
                state, metrics = built.step(state, batch(step), scalars)
                curves[number, step] = metrics["loss"]
                progress(number * num_steps + step + 1, num_steps * len(rates))
                if not np.isfinite(curves[number, step]):
                    curves[number, step:] = np.inf
                    break
    scores = curves[:, -max(1, round(_SCORED * num_steps)) :].mean(axis=1)
    return [float(score) if math.isfinite(score) else math.inf for score in scores]


def side_by_side(built: BuiltStep) -> Callable:
    """Return the step over states and hyperparameters with a leading axis, and one batch for all; states donated."""
    return jax.jit(jax.vmap(built.step, in_axes=(0, None, 0)), donate_argnums=0)


def at_rate(config: Config, rate: float) -> Config:
    """Return the config with another learning rate; `adam_learning_rate` keeps its ratio to it."""
    optimizer = config.optimizer
    adam = optimizer.adam_learning_rate and optimizer.adam_learning_rate * rate / optimizer.learning_rate
    changed = dataclasses.replace(optimizer, learning_rate=rate, adam_learning_rate=adam)
    return dataclasses.replace(config, optimizer=changed)


def at_constant_rate(config: Config, rate: float) -> Config:
    """Return the config with this learning rate at every step."""
    config = at_rate(config, rate)
    flat = dataclasses.replace(config.optimizer, schedule="constant", warmup_steps=0)
    return dataclasses.replace(config, optimizer=flat)


def compressed(config: Config, num_steps: int, rate: float) -> Config:
    """Return the config with a run of `num_steps` steps, its warmup in proportion, and this learning rate."""
    config = at_rate(config, rate)
    warmup = round(config.optimizer.warmup_steps * num_steps / config.optimizer.num_steps)
    short = dataclasses.replace(config.optimizer, num_steps=num_steps, warmup_steps=warmup)
    return dataclasses.replace(config, optimizer=short)


def _smoothing(num_steps: int) -> float:
    return math.exp(-1 / (_SMOOTHING * num_steps))


def _smooth(values: np.ndarray, beta: float) -> np.ndarray:
    """Return the exponential moving average, corrected for its start at 0 as in Adam (Kingma and Ba 2015)."""
    average, out = 0.0, []
    for number, value in enumerate(values, 1):
        average = beta * average + (1 - beta) * value
        out.append(average / (1 - beta**number))
    return np.array(out)


def _longest_descent(values: np.ndarray) -> tuple[int, int]:
    """Return the first and the last place of the longest stretch without a rise."""
    best, first = (0, 0), 0
    for place in range(1, len(values)):
        if values[place] > values[place - 1]:
            first = place
        if place - first > best[1] - best[0]:
            best = first, place
    return best
