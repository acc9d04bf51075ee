"""The scaling law: what is fitted, and that its intervals hold what they promise."""

import math

import numpy as np
import pytest
from scipy import optimize, special

from lm.errors import UsageError
from lm.sweep.scaling import Law, Run, fit

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
# The design of experiments/benchmarks/scaling_law.py.
SIZES, TOKENS = [49.0 * width**2 for width in (32, 48, 64, 96)], [131_072, 212_992, 327_680, 524_288]
LARGER = 49.0 * 192**2, 1_048_576


def runs_of(law, sizes, tokens, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    places = [(N, D) for N in sizes for D in tokens]
    return [Run(N, D, law.loss(N, D) * math.exp(noise * random.standard_normal())) for N, D in places]


def test_a_law_without_noise_is_found_again_over_a_wide_grid():
    fitted = fit(runs_of(CHINCHILLA, np.geomspace(1e6, 1e10, 9), np.geomspace(1e8, 1e12, 9)))
    for name in ("E", "alpha", "beta"):
        assert getattr(fitted.law, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.03)
        low, high = fitted.intervals[name]
        assert low < getattr(CHINCHILLA, name) < high
    assert fitted.predict(1e11, 1e13).loss == pytest.approx(CHINCHILLA.loss(1e11, 1e13), rel=0.003)


def test_the_fit_is_the_minimum_that_scipy_finds_where_priors_no_longer_matter():
    """Against L-BFGS on the published objective: Huber losses of the log-sum-exp."""
    runs = runs_of(CHINCHILLA, np.geomspace(1e6, 1e10, 9), np.geomspace(1e8, 1e12, 9), noise=0.003)
    log_N, log_D, log_L = np.log([(run.parameters, run.tokens, run.loss) for run in runs]).T
    fitted = fit(runs)
    delta = 1.345 * fitted.noise

    def objective(p):
        e, a, b, alpha, beta = p
        terms = [e + 0 * log_N, a - alpha * log_N, b - beta * log_D]
        return special.huber(delta, log_L - special.logsumexp(terms, axis=0)).sum() / fitted.noise**2

    starts = [(0.5, a, b, 0.4, 0.4) for a in (5, 10) for b in (5, 10)]
    found = [optimize.minimize(objective, start, method="L-BFGS-B", options={"maxiter": 5000}) for start in starts]
    e, a, b, alpha, beta = min(found, key=lambda one: one.fun).x
    theirs = Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta)
    assert fitted.law.alpha == pytest.approx(alpha, rel=0.05) and fitted.law.beta == pytest.approx(beta, rel=0.05)
    for place in [(1e6, 1e12), (1e10, 1e8), (1e11, 1e13)]:
        assert fitted.law.loss(*place) == pytest.approx(theirs.loss(*place), rel=0.003)


def coverage(problems, noise=None):
    """Return how often a new, larger run lies in its interval, over laws of all kinds, and the mean half-width."""
    random, inside, widths = np.random.default_rng(1), 0, []
    for seed in range(problems):
        loss, shares = random.uniform(2, 5), random.dirichlet([1.5, 1.5, 1.5])
        alpha, beta = random.uniform(0.15, 0.6, 2)
        sd = noise or math.exp(random.uniform(math.log(0.002), math.log(0.01)))
        middle_N, middle_D = SIZES[1] ** alpha, TOKENS[1] ** beta
        law = Law(loss * shares[0], loss * shares[1] * middle_N, loss * shares[2] * middle_D, alpha, beta)
        predicted = fit(runs_of(law, SIZES, TOKENS, sd, seed)).predict(*LARGER)
        inside += predicted.low <= law.loss(*LARGER) * math.exp(sd * random.standard_normal()) <= predicted.high
        widths.append(predicted.half_width)
    return inside / problems, np.mean(widths)


@pytest.mark.slow
def test_a_95_percent_interval_of_a_larger_run_holds_it_at_least_90_times_in_100_and_is_not_useless():
    covered, width = coverage(300)
    assert covered >= 0.9
    assert width < 0.04


def test_a_form_that_does_not_hold_widens_the_interval():
    """A loss that stops falling with size: the largest runs are not what the smaller ones promise."""
    good = runs_of(CHINCHILLA, SIZES, TOKENS, 0.001)
    bad = [Run(r.parameters, r.tokens, r.loss * (1.05 if r.parameters == SIZES[-1] else 1)) for r in good]
    fitted, misled = fit(good), fit(bad)
    assert misled.widening > 1.5
    assert misled.predict(*LARGER).half_width > 3 * fitted.predict(*LARGER).half_width


def test_one_diverged_run_does_not_move_the_law():
    clean = runs_of(CHINCHILLA, SIZES, TOKENS, 0.003)
    spoiled = [Run(clean[5].parameters, clean[5].tokens, 1.3 * clean[5].loss), *clean[:5], *clean[6:]]
    expected = fit(clean).predict(*LARGER)
    assert fit(spoiled).predict(*LARGER).loss == pytest.approx(expected.loss, rel=0.02)


def test_more_noise_and_a_larger_step_give_a_wider_interval():
    near, far = (49.0 * 128**2, 1e6), (49.0 * 1024**2, 1e8)
    quiet, loud = (fit(runs_of(CHINCHILLA, SIZES, TOKENS, noise)) for noise in (0.002, 0.01))
    assert loud.noise > 2 * quiet.noise
    assert quiet.predict(*near).half_width < loud.predict(*near).half_width
    assert quiet.predict(*near).half_width < quiet.predict(*far).half_width


def test_the_optimum_is_the_lowest_loss_of_its_budget():
    flops = 1e21
    N, D = CHINCHILLA.optimum(flops)
    assert pytest.approx(flops) == 6 * N * D
    for factor in (0.9, 1.1):
        assert CHINCHILLA.loss(N * factor, D / factor) > CHINCHILLA.loss(N, D)
    best, low, high = fit(runs_of(CHINCHILLA, np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5), 0.002)).optimum(
        flops
    )
    assert low[0] < best[0] < high[0] and low[0] < N < high[0]


@pytest.mark.parametrize(
    ("sizes", "tokens", "said"),
    [(SIZES[:2], TOKENS, "with 2 and 4"), (SIZES, TOKENS[:1], "4 with 4 and 1"), ([], [], "found 0")],
)
def test_too_few_runs_are_refused_in_one_line(sizes, tokens, said):
    with pytest.raises(UsageError, match=said) as refusal:
        fit(runs_of(CHINCHILLA, sizes, tokens))
    assert "\n" not in str(refusal.value)


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="positive loss; a run has nan"):
        fit([*runs_of(CHINCHILLA, SIZES, TOKENS), Run(1e5, 1e5, math.nan)])


def test_the_same_runs_give_the_same_interval():
    runs = runs_of(CHINCHILLA, SIZES, TOKENS, 0.004)
    fitted = fit(runs)
    assert fitted.predict(*LARGER) == fitted.predict(*LARGER) == fit(runs).predict(*LARGER)
