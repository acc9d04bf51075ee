"""A mixture of experts beside the dense `tiny.py`, at equal active parameters.

    lm train --config experiments/moe_tiny.py --workdir runs/moe_tiny

Eight experts of half the dense width, two per token: the feed-forward FLOPs of `tiny.py`, and four times its
feed-forward parameters.
"""

import tiny  # the config beside this one


def get_config():
    config = tiny.get_config()
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.d_ff = 256  # tiny's is 512
    return config
