"""Learning-rate factors by path under muP (Yang et al. 2022, "Tensor Programs V").

With m = d_model / mup_base_width, hyperparameters tuned at the base width hold at width m times larger if
each update changes every layer's output by as much as it did there. Per parameter:

| parameter | AdamW and other entrywise rules | Muon, `spectral` or `max_ratio` | Muon, `adam_rms` |
|---|---|---|---|
| kernels inside the blocks (`is_matrix`) | 1 / m | 1 | 1 / sqrt(m) |
| experts' router | 1 / m | 1 / m | 1 / m |
| embeddings, norms, biases | 1 | 1 | 1 |
| head | 1 | 1 | 1 |

Why. A hidden kernel `[in, out]` has both sides proportional to m; its update should have a spectral norm of
order sqrt(out / in), which does not depend on m (Yang, Simon and Bernstein 2023). Updates of entries of
size lr (Adam, and whatever normalizes entries as Adam does: Adafactor, Lion, SOAP, schedule-free) add up over
correlated inputs to a spectral norm of lr sqrt(in out), hence 1 / m. Muon's singular values are all equal
to its scale: sqrt(out / in) needs no factor, 0.2 sqrt(max(in, out)) grows as sqrt(m). What has one side only that
grows (an embedding, a norm, a bias) needs none. The head is multiplied by 1 / m in the model, on the
logits; with that its learning rate is 1 (the paper's table 9). The router is a readout too, `[D, experts]`, with no
multiplier: Adam updates it whatever the others' rule is, so its rate is 1 / m (table 8).

Heads of the same width grow in number; the attention's scale then needs no factor. Where instead the head width grows,
set `attention_scale` to a constant / H. `lm coord-check` measures all this.

Weight decay is left out of the factor: lr times decay, the rate at which weights forget, stays the same
at every width (as in the authors' `mup` package, which multiplies the decay by m where it divides the rate).
A transform of one's own is taken to normalize entries as Adam does.
"""

from lm.axes import is_matrix, letters
from lm.config import Config


def direction_factor(config: Config, path: str) -> float:
    """Return what muP multiplies a parameter's direction by; 1 where `model.mup_base_width` is None."""
    base = config.model.mup_base_width
    is_router = letters(path) == "LDR"
    if base is None or not (is_matrix(path) or is_router):
        return 1.0
    m = config.model.d_model / base
    if config.optimizer.name == "muon" and not is_router:
        return m**-0.5 if config.optimizer.muon_scale == "adam_rms" else 1.0
    return 1 / m
