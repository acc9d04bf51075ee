"""What do 16 bits cost? bf16 and fp16 activations, and bf16 weights with and without stochastic rounding.

lm sweep --config experiments/sweeps/precision.py --workdir runs/precision

Small setting, 3 seeds: bf16 and fp16 activations -0.01 %, no difference seen (0.22 % would have been); bf16 weights 0.17 %
worse (0.01 to 0.34), with stochastic rounding -0.04 %.
"""

from lm.sweep.algebra import Sweep, chain, named, seeds

WEIGHTS = {"precision.compute": "bfloat16", "precision.parameters": "bfloat16"}


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(
            named("f32"),
            named("bf16", {"precision.compute": "bfloat16"}),
            named("fp16", {"precision.compute": "float16"}),
            named("bf16 weights", WEIGHTS),
            named("bf16 weights, stochastic", {**WEIGHTS, "precision.stochastic_rounding": True}),
        ),
        baseline="f32",
        seeds=seeds(3),
    )
