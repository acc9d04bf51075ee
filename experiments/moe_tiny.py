"""A mixture of experts beside the dense `tiny.py`, at equal active parameters.

    lm train --config experiments/moe_tiny.py --workdir runs/moe_tiny

Eight experts of half the dense width, two per token: the feed-forward FLOPs of `tiny.py`, and four times its
feed-forward parameters. Two CPU cores: 600 steps, 1.555 bits per byte on the held-out files where `tiny.py` has 1.573
(one seed each); no token is dropped.
"""

import tiny  # the config beside this one


def get_config():
    config = tiny.get_config()
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.d_ff = 256  # tiny's is 512
    return config
