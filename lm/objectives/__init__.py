"""What is minimized. An objective of one's own is `config.objective = "package.module:Name"`.

Contract: `objective(model, params, batch, *, cross_entropy, grad_scale, dropout_key) -> (loss, sums)`,
with `loss` a scalar already multiplied by `grad_scale` (1 / the global batch's token weight), so
that micro-batches add up to one large batch, and `sums` a dict of scalars that add up over
micro-batches: at least `nll` (nats), `tokens` (weight) and `bytes`. Others are reported: those named
`…_tokens` as counts, the rest as means per token (so they are summed over the tokens here). With
`config.z_loss` above 0 it is called with `z_loss=` that weight too, and puts `z_loss` among the sums.
"""

from collections.abc import Callable

from lm.extensions import load_extension
from lm.objectives.next_token import next_token


def load_objective(name: str) -> Callable:
    """Return the objective that `config.objective` names."""
    if name == "next_token":
        return next_token
    return load_extension("objective", name)
