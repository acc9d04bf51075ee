"""Documents cut where a row ends or fitted whole (best fit), and attending to their neighbours or not: what matters?

lm sweep --config experiments/sweeps/packing_and_masks.py --workdir runs/packing_and_masks

Small setting, 3 seeds: no difference seen between the four (-0.02 to +0.12 %; 0.64 % would have been).
"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def variant(name: str, packing: str, mask: bool):
    return named(name, {"data.packing": packing, "data.document_mask": mask})


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            variant("concat, masked", "concat", True),
            variant("concat, unmasked", "concat", False),
            variant("best fit, masked", "best_fit", True),
            variant("best fit, unmasked", "best_fit", False),
        ),
        baseline="concat, masked",
        seeds=seeds(3),
    )
