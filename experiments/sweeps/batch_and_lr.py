"""Does the learning rate grow with the batch, at equal tokens? A grid of both, as a heat map.

    lm sweep --config experiments/sweeps/batch_and_lr.py --workdir runs/batch_and_lr

The rate is that of the matrices (Muon's); that of the rest stays. Rates share one compilation, so a column of the grid
costs little more than its steps.

Small setting, 3 seeds: the best rate is 4.5e-3, 9e-3 and 1.8e-2 for 4, 8 and 16 rows, so it doubles with the batch; 16 rows are
1.4 % worse at their best than 8.
"""

from lm.sweep.algebra import Sweep, product, seeds, sweep


def get_sweep():
    return Sweep(
        config="small.py",
        variants=product(
            sweep("data.batch_size", [4, 8, 16]),
            sweep("optimizer.learning_rate", [4.5e-3, 9e-3, 1.8e-2]),
        ),
        baseline="batch_size=8 learning_rate=0.009",
        seeds=seeds(3),
        base={"optimizer.num_steps": 100},
    )
