"""Which optimizer settings suit the small model best?

    lm sweep --config experiments/sweeps/search_small.py --workdir runs/search_small --search optuna

All trials share one compilation. The same command on other machines, on the same folder, shares the work.
"""

from lm.sweep.algebra import Search, Uniform


def get_search():
    return Search(
        config="small.py",
        space={
            "optimizer.learning_rate": Uniform(1e-3, 1e-1, log=True),
            "optimizer.adam_learning_rate": Uniform(1e-3, 1e-1, log=True),
            "optimizer.decay_fraction": Uniform(0.2, 1.0),
            "optimizer.warmup_steps": Uniform(0, 100, integer=True),
        },
        trials=30,
        base={"eval.every_steps": 25},
    )
