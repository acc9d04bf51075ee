"""A sweep that brings code: are attention and feed-forward side by side (GPT-J, Wang and Komatsuzaki 2021) as good?

    lm sweep --config experiments/sweeps/parallel_block.py --workdir runs/parallel_block

The block is below; `config.model.block` names it as "module:Class", and the module is this file.

Small setting, 3 seeds: +0.40 % (95 % interval 0.0 to 0.9, p = 0.061): no difference seen, and 0.59 % would have been.
"""

import flax.linen as nn

from lm.model.block import Attention, Block, FeedForward
from lm.sweep.algebra import Sweep, chain, named, seeds


class ParallelBlock(Block):
    """x + attention(norm(x)) + feed_forward(norm(x)), with one norm for both."""

    @nn.compact
    def __call__(self, x_BTD, *, tokens_BT, rope, segment_ids_BT, window, cache, deterministic):
        config, layout = self.config, self.layout
        in_BTD = self._norm("attention_norm", x_BTD, "pre")
        attended_BTD, cache = Attention(config, self.precision, layout, name="attention")(
            in_BTD, tokens_BT=tokens_BT, rope=rope, segment_ids_BT=segment_ids_BT, window=window, cache=cache
        )
        fed_BTD = FeedForward(config, self.precision, layout, name="mlp")(in_BTD, tokens_BT.shape[1])
        return layout.constrain(x_BTD + attended_BTD + fed_BTD, "BTD"), cache, {}


def get_sweep():
    return Sweep(
        config="small.py",
        variants=chain(named("in turn"), named("parallel", {"model.block": "parallel_block:ParallelBlock"})),
        baseline="in turn",
        seeds=seeds(3),
    )
