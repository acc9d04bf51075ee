"""Activation memory of a training step from first principles: no compiler, no device.

Letters are dimensions, c the bytes of the compute type. A layer needs for its backward pass, in elements
of that type,

    the stream before it and after attention, each with its norm      4 B T D
    what norms after the sublayers take in, where there are any       2 B T D
    queries, keys, values, attention's output                         2 B T N H + 2 B T K H
    the log-sum-exp of attention's logits, in f32                     B N T
    gate (of gated activations), up and hidden of the feed-forward    2 or 3 B T F

which is what `none` keeps of each of the L layers; `full` keeps B T D. The reference attention keeps its weights,
B N T S, instead of the log-sum-exp. Parameters are not counted: their gradients
need them as they are. While one layer's backward pass runs, what its policy did not keep is there for that layer,
beside the gradients made on the way. The step's peak is the largest of three moments, each on top of what is kept:

    loss          logits and their gradient in f32 and rounded, of one chunk of tokens:   chunk V (8 + c)
    feed-forward  all of the layer, and the gradients of gate and up (hidden's becomes up's in place)
    attention     all of the layer but its feed-forward, the f32 gradients of queries, keys and values, and two
                  f32 arrays of logits (the gradients of weights and logits): B N T S by the reference, B N times a
                  block of 256 x 256 by the blockwise attention of accelerators

A compiler that casts the stacked f32 parameters to bf16 once, before the loop over the layers, as the TPU's
does, holds such a copy too (`cast_bytes`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lm.axes import ACTIVATIONS
from lm.config import ModelConfig, remat_names
from lm.kernels.activations import GATED
from lm.model.flops import parameter_shapes

LOG_SUM_EXP = "BNT"  # the letters of the only array that is f32 in any compute type
BLOCK = 256  # of the blockwise attention


def _with_lse(names: Sequence[str], arrays: Mapping[str, str]) -> list[str]:
    """Add what goes by the same name."""
    more = ["attention_lse"] if "attention_out" in names and "attention_lse" in arrays else []
    return [*names, *more]


Split = Mapping[
    str, int
]  # letter -> parts into which a mesh divides it; `stream`: T of the residual stream, besides T's


def _elements(config: ModelConfig, letters: str, batch: float, length: int, split: Split = MappingProxyType({})) -> int:
    sizes = {"B": batch, "T": length, "S": length, "D": config.d_model, "F": config.d_ff}
    sizes |= {"N": config.num_heads, "K": config.num_kv_heads, "H": config.head_dim, "k": config.experts_per_token}
    parts = {letter: split.get(letter, 1) for letter in letters} | {"S": 1}
    if letters == "BTD":
        parts["T"] *= split.get("stream", 1)
    if config.num_kv_heads % parts.get("K", 1):
        parts["K"] = 1  # fewer key heads than devices: each holds all of them
    return round(math.prod(sizes[letter] / parts.get(letter, 1) for letter in letters))


def layer_arrays(config: ModelConfig) -> dict[str, str]:
    """Return name -> letters of what a layer's backward pass needs; names outside `ACTIVATIONS` cannot be asked for.

    A mixture's tokens stand once for each of their k experts (none dropped, no padding between experts).
    """
    arrays = dict(ACTIVATIONS)
    if config.num_experts:
        arrays = {name: letters.replace("TF", "TkF") for name, letters in arrays.items()}
        arrays |= {"mlp_sorted": "BTkD", "mlp_returned": "BTkD"}
    if config.norm_placement == "post":
        del arrays["attention_norm"], arrays["mlp_norm"]
    if config.norm_placement != "pre":
        arrays |= {"attention_projected": "BTD", "mlp_projected": "BTD"}
    if config.activation not in GATED:
        del arrays["mlp_gate"]
    if config.qk_norm:
        arrays |= {"query_before_norm": "BTNH", "key_before_norm": "BTKH"}
    if config.attention == "reference":
        arrays["attention_weights"] = "BNTS"
        if config.attention_softcap is not None:
            arrays["attention_tanh"] = "BNTS"
    else:
        arrays["attention_lse"] = LOG_SUM_EXP
    return arrays


def kept_bytes(
    config: ModelConfig,
    policy: str,
    *,
    batch: float,
    length: int,
    itemsize: int,
    split: Split = MappingProxyType({}),
) -> tuple[int, int]:
    """Return the bytes that one layer keeps from its forward to its backward pass: (on the device, on the host).

    Args:
      config: resolved.
      policy: of `config.model.remat`.
      batch: B of one device and micro-batch.
      length: T of a row.
      itemsize: c.
      split: how a mesh divides the other dimensions.
    """
    arrays = layer_arrays(config)
    offloaded: tuple[str, ...] = ()
    if policy == "none":
        kept = list(arrays.values())
    else:
        names, offloaded = remat_names(policy)
        names, offloaded = (_with_lse(part, arrays) for part in (names, offloaded))
        saved = {"block_input", *(name for name in names if name in arrays)} - set(offloaded)
        kept = [arrays[name] for name in saved]
        if "dots" in names:  # results of matmuls against parameters, before biases, norms and rotation
            kept += ["BTNH", "BTKH", "BTKH", "BTD", *["BTF"] * (1 + (config.activation in GATED))]
            kept += ["BTD"] * (config.norm_placement != "pre")  # the feed-forward's, which its norm takes in

    def size(letters: str) -> int:
        return (4 if letters == LOG_SUM_EXP else itemsize) * _elements(config, letters, batch, length, split)

    return sum(map(size, kept)), sum(size(arrays[name]) for name in offloaded if name in arrays)


@dataclasses.dataclass(frozen=True)
class ActivationBytes:
    """Bytes per device of one micro-batch's forward and backward pass, without gradients of parameters."""

    kept: int  # from the forward to the backward pass, all layers
    offloaded: int  # the same, on the host
    moments: Mapping[str, int]  # what each moment adds: `loss`, `feed_forward`, `attention`
    cast_bytes: int  # parameters of the layers in the compute type

    @property
    def moment(self) -> int:
        """What the worst moment adds."""
        return max(self.moments.values())

    @property
    def total(self) -> int:
        return self.kept + self.moment + self.cast_bytes


def layer_bytes(
    config: ModelConfig, *, rows: float, length: int, itemsize: int, split: Split = MappingProxyType({})
) -> tuple[int, int]:
    """Return the bytes of (all that a layer's backward pass needs, what of it `config.remat` puts on the host)."""
    shape = {"batch": rows, "length": length, "itemsize": itemsize, "split": split}
    return kept_bytes(config, "none", **shape)[0], kept_bytes(config, config.remat, **shape)[1]


def activation_bytes(
    config: ModelConfig,
    policy: str,
    *,
    batch: float,
    length: int,
    itemsize: int,
    parameter_itemsize: int = 4,
    split: Split = MappingProxyType({}),
) -> ActivationBytes:
    """Return the activation memory of a step; arguments as for `kept_bytes`."""
    elements = lambda letters: _elements(config, letters, batch, length, split)  # noqa: E731
    arrays = layer_arrays(config)
    device, host = kept_bytes(config, policy, batch=batch, length=length, itemsize=itemsize, split=split)
    everything = itemsize * sum(map(elements, arrays.values()))
    mlp = itemsize * sum(elements(arrays[name]) for name in arrays if name.startswith("mlp_"))
    missing = max(0, everything - device)
    stream = 2 * itemsize * elements("BTD")  # the gradient that goes from layer to layer, and a sublayer's
    is_gated = config.activation in GATED
    hidden = itemsize * elements(arrays["mlp_up"]) * (1 + is_gated)
    block = length if config.attention == "reference" else min(BLOCK, length)
    heads = config.num_heads / split.get("N", 1)
    scores = round(2 * 4 * batch * heads * block**2) + 4 * (elements("BTNH") + 2 * elements("BTKH"))
    tokens = round(min(config.loss_chunk, batch * length / split.get("T", 1)))
    moments = {
        "loss": tokens * config.vocab_size // split.get("V", 1) * (8 + itemsize),
        "feed_forward": missing + hidden + stream,
        "attention": max(0, missing - (mlp if policy != "none" else 0)) + scores + stream,
    }
    layers = sum(math.prod(shape) for path, shape in parameter_shapes(config).items() if path.startswith("layers/"))
    return ActivationBytes(
        kept=config.num_layers * device,
        offloaded=config.num_layers * host,
        moments=moments,
        cast_bytes=layers * itemsize if itemsize < parameter_itemsize else 0,
    )
