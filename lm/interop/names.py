"""Hugging Face's names of our parameters, and the way their arrays lie: one table per family, read both ways.

A table maps a tensor of a Hugging Face checkpoint to the path of a parameter of ours, or to several that it holds
side by side along their outputs (GPT-2's `c_attn`). `{layer}` and `{expert}` are the places in our stacked arrays.
What an array looks like follows from its dimension letters (`lm.axes`): a kernel becomes the matrix [outputs, inputs]
of a torch `Linear`, or [inputs, outputs] of GPT-2's `Conv1D`; a bias becomes flat; the rest stays.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lm.axes import letters, matrix_axes

Names = Mapping[str, str | tuple[str, ...]]

_QKV = ("query", "key", "value")


def _with_biases(prefix: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Map `prefix.<theirs>.weight` and `.bias` to `<ours>/kernel` and `/bias`."""
    kinds = (("weight", "kernel"), ("bias", "bias"))
    return {f"{prefix}.{theirs}.{kind}": f"{ours}/{own}" for theirs, ours in parts.items() for kind, own in kinds}


def _norms(prefix: str, parts: Mapping[str, str]) -> dict[str, str]:
    kinds = (("weight", "scale"), ("bias", "bias"))
    return {f"{prefix}{theirs}.{kind}": f"{ours}/{own}" for theirs, ours in parts.items() for kind, own in kinds}


_GPT2_LAYER, _LAYER = "transformer.h.{layer}", "model.layers.{layer}"
GPT2: Names = {
    "transformer.wte.weight": "embed/tokens/embedding",
    "transformer.wpe.weight": "embed/positions/embedding",
    **_norms(f"{_GPT2_LAYER}.", {"ln_1": "layers/attention_norm", "ln_2": "layers/mlp_norm"}),
    f"{_GPT2_LAYER}.attn.c_attn.weight": tuple(f"layers/attention/{name}/kernel" for name in _QKV),
    f"{_GPT2_LAYER}.attn.c_attn.bias": tuple(f"layers/attention/{name}/bias" for name in _QKV),
    **_with_biases(_GPT2_LAYER, {"attn.c_proj": "layers/attention/out", "mlp.c_fc": "layers/mlp/up"}),
    **_with_biases(_GPT2_LAYER, {"mlp.c_proj": "layers/mlp/down"}),
    **_norms("transformer.", {"ln_f": "final_norm"}),
    "lm_head.weight": "head/kernel",
}
_AROUND: Names = {
    "model.embed_tokens.weight": "embed/tokens/embedding",
    "model.norm.weight": "final_norm/scale",
    "lm_head.weight": "head/kernel",
    **_with_biases(
        f"{_LAYER}.self_attn",
        {
            "q_proj": "layers/attention/query",
            "k_proj": "layers/attention/key",
            "v_proj": "layers/attention/value",
            "o_proj": "layers/attention/out",
        },
    ),
    f"{_LAYER}.self_attn.q_norm.weight": "layers/attention/query_norm/scale",
    f"{_LAYER}.self_attn.k_norm.weight": "layers/attention/key_norm/scale",
    f"{_LAYER}.input_layernorm.weight": "layers/attention_norm/scale",
}
_MLP: Names = _with_biases(f"{_LAYER}.mlp", {f"{part}_proj": f"layers/mlp/{part}" for part in ("gate", "up", "down")})
_SECOND_NORM: Names = {f"{_LAYER}.post_attention_layernorm.weight": "layers/mlp_norm/scale"}
LLAMA: Names = {**_AROUND, **_SECOND_NORM, **_MLP}  # Mistral, Qwen2 and Qwen3 too
GEMMA: Names = {  # 2 and 3: norms on both sides of a sublayer
    **_AROUND,
    **_MLP,
    f"{_LAYER}.post_attention_layernorm.weight": "layers/attention_post_norm/scale",
    f"{_LAYER}.pre_feedforward_layernorm.weight": "layers/mlp_norm/scale",
    f"{_LAYER}.post_feedforward_layernorm.weight": "layers/mlp_post_norm/scale",
}


def _experts(block: str, gate: str, up: str, down: str) -> Names:
    parts = {gate: "gate", up: "up", down: "down"}
    own = {
        f"{_LAYER}.{block}.experts.{{expert}}.{theirs}.weight": f"layers/experts/{ours}/kernel"
        for theirs, ours in parts.items()
    }
    return {**_AROUND, **_SECOND_NORM, f"{_LAYER}.{block}.gate.weight": "layers/experts/router/kernel", **own}


MIXTRAL = _experts("block_sparse_moe", "w1", "w3", "w2")
QWEN3_MOE = _experts("mlp", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face checkpoint.

    Attributes:
      name: Hugging Face's.
      paths: our parameters that it holds, side by side.
      place: the index in our stacked arrays: (), (layer,) or (layer, expert).
      dims: our dimension letters of each part, without the stacked ones.
      sizes: letter -> size, of this model.
      shape: Hugging Face's.
      is_conv: GPT-2's [inputs, outputs] rather than [outputs, inputs].
    """

    name: str
    paths: tuple[str, ...]
    place: tuple[int, ...]
    dims: tuple[str, ...]
    sizes: Mapping[str, int]
    is_conv: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [self._part_shape(dims) for dims in self.dims]
        out = list(shapes[0])
        out[self._output_axis] = sum(shape[self._output_axis] for shape in shapes)
        return tuple(out)

    @property
    def _output_axis(self) -> int:
        return 1 if self.is_conv and matrix_axes(self.dims[0]) else 0

    def _part_shape(self, dims: str) -> tuple[int, ...]:
        sizes, axes = [self.sizes[letter] for letter in dims], matrix_axes(dims)
        if axes is None:
            return tuple(sizes) if dims in ("VD", "PD") else (math.prod(sizes),)
        inputs, outputs = (math.prod(sizes[axis] for axis in part) for part in axes)
        return (inputs, outputs) if self.is_conv else (outputs, inputs)

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """Return Hugging Face's array of our parts at this place (of `dims`, no stacked axes)."""
        matrices = []
        for part, dims in zip(parts, self.dims, strict=True):
            shape = self._part_shape(dims)
            is_turned = matrix_axes(dims) is not None and not self.is_conv
            matrices.append(part.reshape(shape[::-1]).T if is_turned else part.reshape(shape))
        return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, self._output_axis)

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Return our parts of Hugging Face's array: the inverse of `join`."""
        axis = self._output_axis
        cuts = np.cumsum([self._part_shape(dims)[axis] for dims in self.dims])[:-1]
        parts = []
        for part, dims in zip(np.split(array, cuts, axis), self.dims, strict=True):
            is_turned = matrix_axes(dims) is not None and not self.is_conv
            parts.append((part.T if is_turned else part).reshape([self.sizes[letter] for letter in dims]))
        return parts


def tensors(names: Names, shapes: Mapping[str, tuple[int, ...]], zeros: frozenset[str] = frozenset()) -> list[Tensor]:
    """Return the tensors of a model's Hugging Face checkpoint; those of one array of ours follow each other.

    Args:
      names: the family's table.
      shapes: path -> shape of our parameters.
      zeros: paths of biases that the family has and the model has not.

    Raises:
      KeyError: a parameter is not in the family's table.
    """
    sizes = {letter: size for path, shape in shapes.items() for letter, size in zip(letters(path), shape, strict=True)}
    out, done = [], set()
    for name, ours in names.items():
        paths = (ours,) if isinstance(ours, str) else ours
        if not all(path in shapes or path in zeros for path in paths):
            continue
        done |= set(paths)
        dims = tuple(letters(path) for path in paths)
        is_conv = name.startswith("transformer.h.")
        stacked = "".join(letter for letter in "LE" if letter in dims[0])
        core = tuple(part.removeprefix(stacked) for part in dims)
        for place in np.ndindex(*(sizes[letter] for letter in stacked)):
            filled = name.format(**dict(zip(("layer", "expert"), place, strict=False)))
            out.append(Tensor(filled, paths, place, core, sizes, is_conv))
    if missing := set(shapes) - done:
        raise KeyError(min(missing))
    return out


def to_parameters(
    names: Names, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return path -> array of our parameters from a Hugging Face checkpoint: what an import does.

    Args:
      names: the family's table.
      shapes: path -> shape of our parameters.
      read: returns Hugging Face's tensor of a name; raises KeyError.
    """
    params: dict[str, np.ndarray] = {}
    for tensor in tensors(names, shapes):
        for path, part in zip(tensor.paths, tensor.split(read(tensor.name)), strict=True):
            params.setdefault(path, np.empty(shapes[path], part.dtype))[tensor.place] = part
    return params


def from_parameters(
    table: list[Tensor], read: Callable[[str], np.ndarray], zeros: frozenset[str] = frozenset()
) -> Iterator[np.ndarray]:
    """Yield the array of each tensor of a table, holding no more than one tensor's arrays of ours at a time.

    Args:
      table: from `tensors`.
      read: returns our whole parameter of a path.
      zeros: as for `tensors`.
    """
    held: tuple[str, ...] = ()
    arrays: list[np.ndarray] = []
    for tensor in table:
        if tensor.paths != held:
            arrays.clear()  # before the next is read
            arrays += [
                np.zeros([tensor.sizes[letter] for letter in letters(path)], np.float32)
                if path in zeros
                else read(path)
                for path in tensor.paths
            ]
            held = tensor.paths
        yield tensor.join([array[tensor.place] for array in arrays])
