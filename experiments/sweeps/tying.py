"""Should the output head be the token embedding (Press and Wolf 2017)? At equal tokens, and with the width that the
saved parameters buy.

    lm sweep --config experiments/sweeps/tying.py --workdir runs/tying
"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            named("untied"),
            named("tied", {"model.tie_embeddings": True}),
            named("tied, wider", {"model.tie_embeddings": True, "model.d_model": 160, "model.num_heads": 5}),
        ),
        baseline="untied",
        # A tied table is read and written at once: at the head's scale, and multiplied where it is read.
        base={"model.embedding_std": 0.02, "model.embedding_scale": 11.3, "model.initializer": "fan_in"},
        seeds=seeds(3),
    )
