"""How far back must a layer see? Full attention, windows in all layers, and windows with full layers between them.

    lm sweep --config experiments/sweeps/sliding_window.py --workdir runs/sliding_window

Rows have 128 tokens at the small setting; `--config.data.sequence_length` and windows of your own at a larger one.

Small setting, 3 seeds: 16 in three of four layers beats full attention by 1.4 %, in every other layer by 1.3 %, 64 in all by
0.6 %; 16 in all by 1.1 %, which its own scatter does not tell from none.
"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            named("full"),
            named("all 16", {"model.window": (16,)}),
            named("3 of 4 16", {"model.window": (16, 16, 16, None)}),
            named("every other 16", {"model.window": (16, None)}),
            named("all 64", {"model.window": (64,)}),
        ),
        baseline="full",
        seeds=seeds(3),
    )
