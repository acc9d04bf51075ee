"""A scaling law over a sweep's runs, and what it predicts of a larger one.

The form is Chinchilla's (Hoffmann et al. 2022, approach 3), fitted on the logarithm of the loss with a Huber loss:

    L(N, D) = E + A / N^alpha + B / D^beta

N parameters, D training tokens, L the validation loss. Three things differ from the paper, because a sweep has a dozen
runs and not four hundred:

- The Huber loss turns linear at 1.345 times the runs' own noise, which is estimated, not at a fixed 0.001.
- Each parameter has a weak prior (`PRIOR`): few runs leave E and an exponent free to trade against each other.
- The interval of a prediction comes from `DRAWS` refits to perturbed losses and perturbed priors (a parametric
  bootstrap; with the priors perturbed too it samples the posterior: Bardsley et al. 2014), plus the noise of
  the one new run, and is widened by as much as the same procedure underestimates its error when it predicts the
  sweep's own largest runs from the smaller ones. So a form that does not hold for these runs shows in the interval.

Everything is float64 numpy. All refits are one batch of damped Gauss-Newton steps.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from lm.errors import UsageError

DRAWS = 500  # refits for an interval
FEWEST_RUNS, FEWEST_VALUES = 8, 3  # runs, and different numbers of parameters and of tokens among them
HUBER = 1.345  # standard deviations; 95 % efficient under normal noise
HUBER_VARIANCE = 0.7102  # of a standard normal variable clipped there
LEAST_NOISE = 0.001  # of a run's loss, relative: the next seed is never closer
LEVEL = 0.95  # of an interval

# (mean, standard deviation) of the logarithms: E and the two terms at the middle of the runs, each relative to their
# mean loss, within a factor of 4 of a third of it; exponents between 0.13 and 0.95 (Chinchilla: 0.34 and 0.28).
PRIOR = np.array([[math.log(1 / 3), 0.7], [math.log(1 / 3), 0.7], [math.log(1 / 3), 0.7]] + 2 * [[math.log(0.35), 0.5]])


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: what the law is fitted to."""

    parameters: float  # N
    tokens: float  # D, trained on
    loss: float  # of validation, at the end


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the N and D of the lowest loss for a budget of 6 N D FLOPs (Hoffmann et al. 2022, equation 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A predicted loss, and the interval in which one new run's lies with a probability of `LEVEL`."""

    loss: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the predicted loss."""
        return (self.high - self.low) / 2 / self.loss


@dataclasses.dataclass(frozen=True)
class Check:
    """Runs of the sweep predicted from its smaller ones."""

    held_back: str  # which
    runs: int
    error: float  # mean of predicted over measured loss, less 1
    expected: float  # standard deviation of that error that the fit claimed


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law with what is known of its error."""

    law: Law
    noise: float  # standard deviation of a run's loss around the law, relative
    intervals: dict[str, tuple[float, float]]  # of E, A, B, alpha, beta, at `LEVEL`
    checks: Sequence[Check]
    widening: float  # factor on the interval, from the checks
    _posterior: "_Posterior"

    def predict(self, parameters: float, tokens: float) -> Prediction:
        """Return the loss of one new run with N parameters on D tokens."""
        deviations = self._posterior.deviations(np.log([parameters]), np.log([tokens]))[:, 0]
        loss = self.law.loss(parameters, tokens)
        low, high = np.quantile(deviations, _tails()) * self.widening
        return Prediction(loss, loss * math.exp(low), loss * math.exp(high))

    def optimum(self, flops: float) -> tuple[tuple[float, float], ...]:
        """Return (N, D) of the lowest loss for a budget of 6 N D FLOPs: best estimate, and low and high of each.

        The bounds are of the fit alone, without the widening of predictions.
        """
        drawn = np.array([law.optimum(flops) for law in self._posterior.laws()])
        return self.law.optimum(flops), *map(tuple, np.quantile(drawn, _tails(), axis=0))


def fit(runs: Iterable[Run], seed: int = 0) -> Fit:
    """Fit the law to runs.

    Args:
      runs: of one tokenizer and one validation set, each trained on every token about once, with a learning rate
        that suits its size and a schedule that ends with its tokens; otherwise the loss depends on more than N and D.
      seed: of the perturbations.

    Raises:
      UsageError: too few runs, sizes or numbers of tokens; or a value that is not a positive number.
    """
    runs = list(runs)
    _check(runs)
    posterior = _Posterior(runs, seed, DRAWS)
    checks = [check for check in _checks(runs, seed) if check]
    squares = [(check.error / check.expected) ** 2 for check in checks]
    widening = max(1.0, math.sqrt(sum(squares) / len(squares))) if squares else 1.0
    drawn = np.array([dataclasses.astuple(law) for law in posterior.laws()])
    names = [field.name for field in dataclasses.fields(Law)]
    bounds = np.quantile(drawn, _tails(), axis=0).T
    intervals = {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds, strict=True)}
    return Fit(posterior.law, posterior.noise, intervals, checks, widening, posterior)


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        for name, value in dataclasses.asdict(run).items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"a scaling law needs positive {name}; a run has {value}.")
    sizes, tokens = ({getattr(run, name) for run in runs} for name in ("parameters", "tokens"))
    if len(runs) < FEWEST_RUNS or min(len(sizes), len(tokens)) < FEWEST_VALUES:
        raise UsageError(
            f"a scaling law needs at least {FEWEST_RUNS} finished runs with {FEWEST_VALUES} numbers of parameters and "
            f"{FEWEST_VALUES} of tokens; found {len(runs)} with {len(sizes)} and {len(tokens)}."
        )


def _checks(runs: Sequence[Run], seed: int) -> Iterable[Check | None]:
    """Predict the largest size, the most tokens, and the run that has both, from the runs with neither or less."""
    size, tokens = max(run.parameters for run in runs), max(run.tokens for run in runs)
    yield _predicted(
        runs, "the largest size", lambda run: run.parameters < size, lambda run: run.parameters == size, seed
    )
    yield _predicted(runs, "the most tokens", lambda run: run.tokens < tokens, lambda run: run.tokens == tokens, seed)
    yield _predicted(
        runs,
        "both",
        lambda run: run.parameters < size and run.tokens < tokens,
        lambda run: run.parameters == size and run.tokens == tokens,
        seed,
    )


def _predicted(runs: Sequence[Run], name: str, is_kept, is_held_back, seed: int) -> Check | None:
    """Return how well runs are predicted from others; None where these are too few to tell."""
    kept, held_back = [run for run in runs if is_kept(run)], [run for run in runs if is_held_back(run)]
    if not held_back or len(kept) < 6 or min(len({r.parameters for r in kept}), len({r.tokens for r in kept})) < 2:
        return None
    posterior = _Posterior(kept, seed, DRAWS // 5)
    deviations = posterior.deviations(*(np.log([getattr(r, of) for r in held_back]) for of in ("parameters", "tokens")))
    errors = [math.log(posterior.law.loss(run.parameters, run.tokens) / run.loss) for run in held_back]
    return Check(name, len(held_back), math.expm1(np.mean(errors)), float(np.std(deviations.mean(axis=1))))


def _tails() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


class _Posterior:
    """The law of highest posterior density for some runs, its noise, and draws around it.

    Inside, the parameters are p = (log E', log A', log B', log alpha, log beta): log N and log D are measured from their
    means and the loss from its (geometric) mean, so that they are hardly correlated and the priors apply.
    """

    def __init__(self, runs: Sequence[Run], seed: int, draws: int):
        self._seed, random = seed, np.random.default_rng(seed)
        values = np.log([dataclasses.astuple(run) for run in runs])
        self._centre = values.mean(axis=0)
        log_N, log_D, log_loss = (values - self._centre).T
        shapes = np.log(np.stack(np.meshgrid([0.15, 0.3, 0.6], [0.15, 0.3, 0.6]), -1).reshape(-1, 2))
        p = np.concatenate([np.full((len(shapes), 3), PRIOR[0, 0]), shapes], axis=1)
        noise, free = 0.01, 3.0
        for _ in range(10):  # fit and noise depend on each other
            p, cost = _minimize(p, log_N, log_D, log_loss, PRIOR[:, 0], noise)
            p = p[[np.argmin(cost)]]
            residuals, J = _residuals_and_jacobian(p, log_N, log_D, log_loss)
            weights = _huber_weights(residuals, noise)
            JJ = np.einsum("rni,rn,rnj->ij", J, weights, J) / noise**2
            used = np.trace(np.linalg.solve(JJ + np.diag(PRIOR[:, 1] ** -2), JJ))  # of the 5 parameters, by the data
            free = max(1.0, len(runs) - used)
            # Huber's proposal 2: a run that went wrong counts no more than one at the edge.
            noise = max(LEAST_NOISE, math.sqrt(np.sum((weights * residuals) ** 2) / HUBER_VARIANCE / free))
        self.noise = noise
        self.law = self._law(p[0])
        self._best = p
        # The noise is itself uncertain: its draws make the tails those of Student's t.
        self._noises = noise * np.sqrt(free / random.chisquare(free, (draws, 1)))
        perturbed = log_loss + self._noises * random.standard_normal((draws, len(runs)))
        centres = PRIOR[:, 0] + PRIOR[:, 1] * random.standard_normal((draws, 5))
        self._drawn, _ = _minimize(np.repeat(p, draws, 0), log_N, log_D, perturbed, centres, self._noises)

    def _law(self, p: np.ndarray) -> Law:
        log_N, log_D, log_loss = self._centre
        alpha, beta = np.exp(p[3:])
        E, A, B = np.exp(p[:3] + log_loss + [0, alpha * log_N, beta * log_D])
        return Law(float(E), float(A), float(B), float(alpha), float(beta))

    def laws(self) -> Iterable[Law]:
        return map(self._law, self._drawn)

    def deviations(self, log_N: np.ndarray, log_D: np.ndarray) -> np.ndarray:
        """Return draws `[draws, runs]` of log(loss of a new run / predicted loss)."""
        zero, place = np.zeros(len(log_N)), (log_N - self._centre[0], log_D - self._centre[1])
        best, drawn = (-_residuals_and_jacobian(p, *place, zero)[0] for p in (self._best, self._drawn))
        own_noise = np.random.default_rng([self._seed, 1]).standard_normal(drawn.shape)  # the same at every call
        return drawn - best + self._noises * own_noise


def _residuals_and_jacobian(p, log_N, log_D, log_loss) -> tuple[np.ndarray, np.ndarray]:
    """Return measured less predicted log loss `[R, n]` and the derivative `[R, n, 5]` of the predicted, of `p [R, 5]`."""
    alpha, beta = np.exp(p[:, 3:, None]).transpose(1, 0, 2)
    terms = np.stack(
        np.broadcast_arrays(p[:, 0, None] + 0 * log_N, p[:, 1, None] - alpha * log_N, p[:, 2, None] - beta * log_D)
    )
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    shares /= total
    J = np.stack([*shares, -shares[1] * alpha * log_N, -shares[2] * beta * log_D], axis=-1)
    return log_loss - top - np.log(total), J


def _huber_weights(residuals: np.ndarray, noise) -> np.ndarray:
    return 1 / np.maximum(1, np.abs(residuals) / (HUBER * noise))


def _minimize(p, log_N, log_D, log_loss, centres, noise) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum `[R, 5]` near each start and its cost: Huber losses plus squared distances from the priors.

    Damped Gauss-Newton (Levenberg-Marquardt) on the reweighted squares, all R problems at once: one after the other
    by L-BFGS they would take thirty times as long.
    """
    precision = PRIOR[:, 1] ** -2

    def cost_of(p, residuals):
        size = np.abs(residuals) / noise
        huber = np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
        return huber.sum(axis=1) + ((p - centres) ** 2 * precision).sum(axis=1) / 2

    residuals, J = _residuals_and_jacobian(p, log_N, log_D, log_loss)
    cost, damping = cost_of(p, residuals), np.full(len(p), 1e-2)
    for _ in range(100):
        weights = _huber_weights(residuals, noise) / noise**2
        gradient = np.einsum("rni,rn->ri", J, weights * residuals) - (p - centres) * precision
        H = np.einsum("rni,rn,rnj->rij", J, weights, J) + np.diag(precision)
        H += damping[:, None, None] * np.eye(5) * np.einsum("rii->ri", H)[:, None]
        step = np.clip(np.linalg.solve(H, gradient[..., None])[..., 0], -1, 1)
        new_residuals, new_J = _residuals_and_jacobian(p + step, log_N, log_D, log_loss)
        new_cost = cost_of(p + step, new_residuals)
        better = new_cost <= cost
        gain = np.max(np.where(better, cost - new_cost, 0))
        p, cost = np.where(better[:, None], p + step, p), np.where(better, new_cost, cost)
        residuals = np.where(better[:, None], new_residuals, residuals)
        J = np.where(better[:, None, None], new_J, J)
        damping = np.clip(damping * np.where(better, 0.3, 4.0), 1e-9, 1e9)
        if gain < 1e-4 and better.mean() > 0.5:
            break
    return p, cost
