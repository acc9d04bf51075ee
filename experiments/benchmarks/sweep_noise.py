"""Are verdicts right on real runs? A config against itself, and against one that was made about 3 % worse.

    python -m experiments.benchmarks.sweep_noise --workdir runs/sweep_noise

A/A: ten seeds of `experiments/sweeps/small.py`, split in two halves that are compared as two variants with five seeds each; in
the order of the seeds, and in all 126 ways, of which about 5 % should see a difference that is not there (they share runs,
so it is no exact figure). A/B: five seeds of it against the same seeds with fewer steps. And five seeds of
`experiments/tiny.py`, whose scatter `sweep_verdicts` takes. The same command goes on where it stopped; beside another it
shares the runs.

On 2 CPU cores shared with other jobs: small.py 1.9762 bits per byte, standard deviation 0.0074 over ten seeds. A/A: no difference
seen (-0.08 %, p = 0.83), and 8 of the 126 splits (6 %) see one. A/B: worse by 3.05 %, p = 0.0002.
tiny.py: 1.5713, standard deviation 0.0021 over five seeds.
"""

import argparse
import itertools
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from lm.sweep.results import read_sweep
from lm.sweep.statistics import judge

EXPERIMENTS = pathlib.Path(__file__).parents[1]
SMALL, TINY = EXPERIMENTS / "sweeps" / "small.py", EXPERIMENTS / "tiny.py"
SWEEP = '''
"""{about}"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def get_sweep():
    return Sweep(config={config!r}, variants=chain({variants}), baseline="as it is", match="steps", seeds=seeds({seeds}))
'''
PLANTED = 'named("as it is"), named("shorter", {"optimizer.num_steps": %d})'


def run(folder: pathlib.Path, config: pathlib.Path, about: str, variants: str, seeds: int):
    """Run a sweep, or what is left of it; return what its folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{folder.name}.py"
    file.write_text(SWEEP.format(about=about, config=str(config), variants=variants, seeds=seeds))
    command = [sys.executable, "-m", "lm", "sweep", "--config", str(file), "--workdir", str(folder), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_sweep(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=160, help="of the runs that are made worse; the others have 200")
    args = parser.parse_args()

    planted = run(args.workdir / "planted", SMALL, "Fewer steps are worse.", PLANTED % args.steps, 5)
    (args.workdir / "same" / "results").mkdir(parents=True, exist_ok=True)
    for one in planted.runs:  # the same runs are not trained twice
        if one.variant == "as it is":
            name = f"{one.id}.json"
            shutil.copy(args.workdir / "planted" / "results" / name, args.workdir / "same" / "results" / name)
    ten = run(args.workdir / "same", SMALL, "Ten seeds.", 'named("as it is")', 10)
    values = np.array(list(ten.values()["as it is"].values()))

    def halves(first: tuple[int, ...]):
        second = [number for number in range(len(values)) if number not in first]
        both = {"a": dict(enumerate(values[list(first)])), "b": dict(enumerate(values[second]))}
        (difference,) = judge(both, "a").differences
        return difference

    splits = [halves(first) for first in itertools.combinations(range(10), 5) if 0 in first]
    seen = sum(split.verdict != "no difference seen" for split in splits)
    a_a, judged = splits[0], judge(planted.values(), "as it is")
    (a_b,) = judged.differences
    print(f"small.py: {values.mean():.4f} bits per byte, standard deviation over 10 seeds {values.std(ddof=1):.4f}")
    print(
        f"A/A, seeds 0-4 and 5-9: {a_a.verdict} ({a_a.percent:+.2f} %, p = {a_a.p:.2f}); {seen} of {len(splits)} splits see one"
    )
    print(
        f"A/B, {args.steps} steps: {a_b.verdict} ({a_b.percent:+.2f} %, p = {a_b.p:.2g}); noise of a run "
        f"{judged.residual_sd:.4f}, smallest effect {100 * a_b.smallest / judged.baseline_mean:.2f} %",
        flush=True,
    )
    tiny = run(args.workdir / "tiny", TINY, "Five seeds.", 'named("as it is")', 5)
    values = np.array(list(tiny.values()["as it is"].values()))
    print(f"tiny.py: {values.mean():.4f} bits per byte, standard deviation over 5 seeds {values.std(ddof=1):.4f}")


if __name__ == "__main__":
    main()
