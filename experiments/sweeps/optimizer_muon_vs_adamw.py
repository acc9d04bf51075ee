"""Muon (Jordan et al. 2024) or AdamW, each at the best of three learning rates?

    lm sweep --config experiments/sweeps/optimizer_muon_vs_adamw.py --workdir runs/optimizer_muon_vs_adamw

Look at the best rate of each: a verdict about an optimizer at one rate is a verdict about the rate. Embeddings and
norms are AdamW's in both, at the baseline's rate.
"""

from lm.sweep.algebra import Sweep, chain, named, product, seeds, sweep

RATES = sweep("optimizer.learning_rate", [3e-3, 6e-3, 1.2e-2])


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            product(named("adamw"), RATES),
            product(named("muon", {"optimizer.name": "muon", "optimizer.adam_learning_rate": 6e-3}), RATES),
        ),
        baseline="adamw learning_rate=0.006",
        seeds=seeds(3),
    )
