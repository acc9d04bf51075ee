"""How many tokens should the vocabulary have, at equal text read? (Bits per byte compare; losses per token do not.)

    lm sweep --config experiments/sweeps/tokenizer_size.py --workdir runs/tokenizer_size

Every variant reads the same bytes; a larger vocabulary makes fewer tokens of them, so fewer steps.

Small setting, 3 seeds: 4,096 beats 2,048 by 2.9 %; 1,024 is 3.3 % and 512 is 4.4 % worse.
"""

from lm.sweep.algebra import Sweep, seeds, sweep


def get_sweep():
    return Sweep(
        config="small.py",
        variants=sweep("data.tokenizer_vocab_size", [512, 1024, 2048, 4096]),
        baseline="tokenizer_vocab_size=2048",
        match="bytes",
        seeds=seeds(3),
    )
