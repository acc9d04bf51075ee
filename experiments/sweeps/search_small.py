"""Which optimizer settings suit the small model best?

    lm sweep --config experiments/sweeps/search_small.py --workdir runs/search_small --search optuna

All trials share one compilation. The same command on other machines, on the same folder, shares the work.
"""

from lm.sweep.algebra import Search, Uniform


def get_search():
    return Search(
        config="small.py",
        space={
            "optimizer.learning_rate": Uniform(3e-4, 3e-2, log=True),
            "optimizer.weight_decay": Uniform(1e-3, 1.0, log=True),
            "optimizer.b2": Uniform(0.9, 0.999),
            "optimizer.warmup_steps": Uniform(0, 100, integer=True),
        },
        trials=30,
        base={"eval.every_steps": 25},
    )
