"""Is a gated feed-forward (SwiGLU, Shazeer 2020) better than GELU at the same number of tokens and parameters?

lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir runs/swiglu_vs_gelu
"""

from lm.sweep.algebra import Sweep, chain, named, seeds


def get_sweep():
    # 8/3 D where gated (three kernels), 4 D where not (two): the same number of parameters, up to rounding.
    return Sweep(
        config="small.py",
        variants=chain(
            named("gelu", {"model.activation": "gelu"}),
            named("swiglu", {"model.activation": "swiglu"}),
        ),
        baseline="gelu",
        seeds=seeds(3),
    )
