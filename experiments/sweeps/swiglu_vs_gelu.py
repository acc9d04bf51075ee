"""Is a gated feed-forward (SwiGLU, Shazeer 2020) better than GELU, at equal training FLOPs?

    lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir runs/swiglu_vs_gelu
    lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --workdir runs/swiglu_124m --base experiments/gpt2_124m.py

The hidden width is 8/3 D where gated (three kernels, rounded up to 64) and 4 D where not (two): about the same number
of parameters, and what is left of the difference in FLOPs is made up for in steps.

Small setting, 3 seeds, 3 minutes: SwiGLU +0.46 % (95 % interval -0.1 to 1.0, p = 0.067): no difference seen, and 0.71 % would
have been.
"""

from lm.sweep.algebra import Sweep, seeds, sweep


def get_sweep():
    return Sweep(
        config="small.py",
        variants=sweep("model.activation", ["gelu", "swiglu"]),
        baseline="gelu",
        match="flops",
        seeds=seeds(3),
    )
