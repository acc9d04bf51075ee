"""Should the output head be the token embedding (Press and Wolf 2017)? At equal tokens, and with the width that the
saved parameters buy.

    lm sweep --config experiments/sweeps/tying.py --workdir runs/tying

Small setting, 3 seeds: tied is 3.7 % worse, and with the width that the saved parameters buy 3.1 %.
"""

from lm.sweep.algebra import Sweep, chain, named, seeds

# A table that is also the head starts and learns at the head's scale, and is multiplied where it is read.
TIED = {
    "model.tie_embeddings": True,
    "model.embedding_std": 0.02,
    "model.embedding_scale": 11.3,
    "optimizer.lr_multipliers": (),
}


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            named("untied"),
            named("tied", TIED),
            named("tied, wider", {**TIED, "model.d_model": 144}),
        ),
        baseline="untied",
        seeds=seeds(3),
    )
