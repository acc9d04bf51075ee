"""What do grouped queries (Ainslie et al. 2023) cost in quality? Four query heads over 4, 2 or 1 key/value heads.

lm sweep --config experiments/sweeps/gqa_groups.py --workdir runs/gqa_groups
"""

from lm.sweep.algebra import Sweep, seeds, sweep


def get_sweep():
    return Sweep(
        config="small.py",
        variants=sweep("model.num_kv_heads", [4, 2, 1]),
        baseline="num_kv_heads=4",
        seeds=seeds(3),
    )
