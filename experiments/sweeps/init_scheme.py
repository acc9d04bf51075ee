"""Which initialization learns fastest? The schemes of `lm/model/initializers.py`, embeddings the same in all.

lm sweep --config experiments/sweeps/init_scheme.py --workdir runs/init_scheme

Small setting, 3 seeds: normal is as good as gpt2; zero_out is 1.8 %, fan_in 3.6 %, kaiming_in 4.8 % worse.
"""

from lm.sweep.algebra import Sweep, seeds, sweep


def get_sweep():
    return Sweep(
        config="small.py",
        variants=sweep("model.initializer", ["gpt2", "normal", "fan_in", "zero_out", "kaiming_in"]),
        baseline="gpt2",
        base={"model.embedding_std": 0.02},
        seeds=seeds(3),
    )
