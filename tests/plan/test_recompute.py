"""What a remat policy computes again."""

import pytest

from lm.plan.recompute import Recomputed, recomputed
from tests.plan.common import config_of

POLICIES = {
    "none": Recomputed(0, 0, 0, 0),
    "dots": Recomputed(0, 1, 0, 0),
    "full": Recomputed(1, 1, 1, 2 / 3),
    "attention_out": Recomputed(1, 0, 1, 2 / 3),
    "attention_out,mlp_input,mlp_up": Recomputed(1, 0, 0, 1 / 3),
    "query,key,value,attention_out,mlp_input,mlp_gate,mlp_up": Recomputed(0, 0, 0, 0),
    "offload:block_input": Recomputed(1, 1, 1, 2 / 3),
    "key,offload:attention_out": Recomputed(40 / 48, 0, 1, 2 / 3),
}


@pytest.mark.parametrize("policy, expected", POLICIES.items())
def test_what_is_kept_or_offloaded_is_not_computed_again(policy, expected):
    found = recomputed(config_of(**{"model.remat": policy}).model)  # 32 query heads, 8 key heads
    for name in ("projections", "attention", "out", "feed_forward"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


def test_a_norm_after_a_sublayer_needs_its_last_matmul_again():
    found = recomputed(config_of(**{"model.remat": "full", "model.norm_placement": "both"}).model)
    assert (found.out, found.feed_forward) == (1, 1)
