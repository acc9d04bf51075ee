"""Muon (Jordan et al. 2024) or AdamW, each at the best of its learning rates?

    lm sweep --config experiments/sweeps/optimizer_muon_vs_adamw.py --workdir runs/optimizer_muon_vs_adamw

Look at the best rate of each: a verdict about an optimizer at one rate is a verdict about the rate. Embeddings,
head and norms are AdamW's in both, with 30 times the rate for the embeddings.

Small setting, 3 seeds: Muon at 9e-3 beats AdamW by 14 % (95 % interval 7 to 21), at half and twice that rate by 13 and 12 %.
"""

from lm.sweep.algebra import Sweep, chain, named, product, seeds, sweep

ADAMW = {"optimizer.name": "adamw", "optimizer.b1": 0.9, "optimizer.weight_decay": 0.1}


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            product(named("adamw", ADAMW), sweep("optimizer.learning_rate", [3e-3, 6e-3])),
            product(named("muon"), sweep("optimizer.learning_rate", [4.5e-3, 9e-3, 1.8e-2])),
        ),
        baseline="adamw learning_rate=0.006",
        seeds=seeds(3),
    )
