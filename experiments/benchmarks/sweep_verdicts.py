"""How often the verdicts of a sweep err, and what they find: simulated sweeps with and without a difference.

python -m experiments.benchmarks.sweep_verdicts
python -m experiments.benchmarks.sweep_verdicts --sweep sweeps/swiglu_vs_gelu     # the noise of a real sweep

"errs" is how often a sweep of equal variants sees a difference in any of them, which is to be 5 %; "finds" how often the
variant that is better by so much is called better; "sees" the median of what sweeps say is the smallest effect that they
could have seen. Where noise is not equal, one variant (in "finds" another than the better one) or the baseline has three
times that of the others. 2,000 sweeps a figure, about 7 minutes on a busy CPU core; the noise is `experiments/tiny.py`'s, 0.0021
bits per byte over five seeds (`sweep_noise`):

    noise                            seeds    errs  finds 2%  finds 1%    sees
    equal                                3   0.050     0.987     0.906   0.42%
    equal                                4   0.048     1.000     0.989   0.35%
    equal                                5   0.038     1.000     1.000   0.30%
    a variant 3x                         3   0.086     0.996     0.961   0.53%
    a variant 3x                         4   0.068     1.000     0.997   0.42%
    a variant 3x                         5   0.059     1.000     1.000   0.35%
    the baseline 3x                      3   0.105     0.546     0.413   2.33%
    the baseline 3x                      4   0.085     0.940     0.458   1.37%
    the baseline 3x                      5   0.061     1.000     0.725   1.01%

With 3 seeds an F-test does not always notice threefold noise, so there the verdicts err more often than they should.
"""

import argparse

import numpy as np

from lm.sweep.results import read_sweep
from lm.sweep.statistics import judge

SEEDS = (3, 4, 5)
EFFECTS = (0.02, 0.01)  # of the baseline
UNSTEADY = 3.0  # times the noise of the others


def simulate(
    rng: np.random.Generator, args: argparse.Namespace, seeds: int, effect: float = 0.0, unsteady: int | None = None
):
    """Return the judgement of one simulated sweep: variant 0 is the baseline, variant 1 is lower by `effect` of it."""
    noise = np.full((args.variants + 1, 1), args.residual_sd)
    if unsteady is not None:
        noise[unsteady] *= UNSTEADY
    values = args.mean + rng.normal(0, args.seed_sd, seeds) + noise * rng.normal(size=(len(noise), seeds))
    values[1] -= effect * args.mean
    return judge({str(number): dict(enumerate(row)) for number, row in enumerate(values)}, "0")


def error_rate(args: argparse.Namespace, seeds: int, unsteady: int | None = None) -> float:
    """Return how often a sweep without any difference sees one or more."""
    rng = np.random.default_rng(seeds)
    found = 0
    for _ in range(args.simulations):
        judgement = simulate(rng, args, seeds, unsteady=unsteady)
        found += any(difference.verdict != "no difference seen" for difference in judgement.differences)
    return found / args.simulations


def power(args: argparse.Namespace, seeds: int, effect: float, unsteady: int | None = None) -> tuple[float, float]:
    """Return how often variant 1 is found better, and the median of the smallest effect that sweeps say they see."""
    rng = np.random.default_rng(seeds)
    found, smallest = 0, []
    for _ in range(args.simulations):
        judgement = simulate(rng, args, seeds, effect, unsteady)
        found += judgement.differences[0].verdict == "better"
        smallest.append(judgement.smallest)
    return found / args.simulations, float(np.median(smallest)) / args.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=5, help="beside the baseline")
    parser.add_argument("--mean", type=float, default=1.571, help="of the metric")
    parser.add_argument("--seed-sd", type=float, default=0.001, help="of what a seed does to all variants alike")
    parser.add_argument("--residual-sd", type=float, default=0.0021, help="of what it does to each")
    parser.add_argument("--sweep", metavar="DIR", help="take mean and noise from a sweep's folder")
    args = parser.parse_args()
    if args.sweep:
        sweep = read_sweep(args.sweep)
        measured = judge(sweep.values(), sweep.baseline)
        if not measured.residual_sd > 0:
            parser.error(f"{args.sweep} has no noise to measure: two variants with two seeds in common are needed")
        args.mean, args.residual_sd = measured.baseline_mean, measured.residual_sd
        args.seed_sd = np.nan_to_num(measured.seed_sd)
    print(
        f"{args.simulations:,} sweeps a figure, {args.variants} variants and the baseline; mean {args.mean:.4g}, "
        f"seed sd {args.seed_sd:.2g}, residual sd {args.residual_sd:.2g} ({100 * args.residual_sd / args.mean:.2g} %)\n"
    )
    finds = [f"finds {effect:.0%}" for effect in EFFECTS]
    print(f"{'noise':<32}{'seeds':>6}{'errs':>8}" + "".join(f"{name:>10}" for name in finds) + f"{'sees':>8}")
    cases = {"equal": (None, None), f"a variant {UNSTEADY:g}x": (1, 2), f"the baseline {UNSTEADY:g}x": (0, 0)}
    for name, (of_null, of_effect) in cases.items():
        for seeds in SEEDS:
            powers = [power(args, seeds, effect, of_effect) for effect in EFFECTS]
            line = f"{name:<32}{seeds:>6}{error_rate(args, seeds, of_null):>8.3f}"
            print(line + "".join(f"{found:>10.3f}" for found, _ in powers) + f"{powers[0][1]:>8.2%}", flush=True)


if __name__ == "__main__":
    main()
