"""The tables that everything about parameters is derived from: path to letters, letters to mesh axes.

Dimension letters (the scaling book's): B batch, T query length, S key/value length, D model
width, F feed-forward width, N query heads, K key/value heads, H head width, V vocabulary,
L layers (stacked), E experts (stacked), R the router's outputs (one per expert), P learned positions. A parameter's letters say how it is initialized (fans), how it is
sharded, whether it is decayed, and along which axes Muon orthogonalizes it.
"""

from collections.abc import Mapping

# Every parameter of the model: path -> dimension letters.
PARAMETERS: Mapping[str, str] = {
    "embed/tokens/embedding": "VD",
    "embed/positions/embedding": "PD",
    "layers/attention_norm/scale": "LD",
    "layers/attention_norm/bias": "LD",
    "layers/attention/query/kernel": "LDNH",
    "layers/attention/query/bias": "LNH",
    "layers/attention/key/kernel": "LDKH",
    "layers/attention/key/bias": "LKH",
    "layers/attention/value/kernel": "LDKH",
    "layers/attention/value/bias": "LKH",
    "layers/attention/value_embed/embedding": "LVKH",
    "layers/attention/query_norm/scale": "LH",
    "layers/attention/key_norm/scale": "LH",
    "layers/attention/out/kernel": "LNHD",
    "layers/attention/out/bias": "LD",
    "layers/attention_post_norm/scale": "LD",
    "layers/attention_post_norm/bias": "LD",
    "layers/mlp_norm/scale": "LD",
    "layers/mlp_norm/bias": "LD",
    "layers/mlp/gate/kernel": "LDF",
    "layers/mlp/up/kernel": "LDF",
    "layers/mlp/up/bias": "LF",
    "layers/mlp/gate/bias": "LF",
    "layers/mlp/down/kernel": "LFD",
    "layers/mlp/down/bias": "LD",
    "layers/experts/router/kernel": "LDR",
    "layers/experts/gate/kernel": "LEDF",
    "layers/experts/up/kernel": "LEDF",
    "layers/experts/down/kernel": "LEFD",
    "layers/mlp_post_norm/scale": "LD",
    "layers/mlp_post_norm/bias": "LD",
    "final_norm/scale": "D",
    "final_norm/bias": "D",
    "head/kernel": "DV",
}

# Activations that a block names for remat policies (`config.model.remat`): name -> dimension letters.
ACTIVATIONS: Mapping[str, str] = {
    "block_input": "BTD",  # the residual stream before each layer
    "attention_norm": "BTD",
    "query": "BTNH",  # as attention takes it: normed and rotated
    "key": "BTKH",
    "value": "BTKH",
    "attention_out": "BTNH",  # before its projection; with it goes the log-sum-exp, BNT in f32
    "mlp_input": "BTD",  # the residual stream between attention and feed-forward
    "mlp_norm": "BTD",
    "mlp_gate": "BTF",  # of gated activations only
    "mlp_up": "BTF",
    "mlp_hidden": "BTF",
}

# The device mesh, outermost first: `tensor` neighbours talk most, `slices` are joined by the slowest network.
MESH_AXES = ("slices", "stage", "data", "fsdp", "expert", "context", "tensor")
# What holds different rows of the batch. Micro-batches (A) are spread over pipeline stages outside the pipeline.
BATCH_AXES = ("slices", "data", "fsdp", "expert")

# Letter -> mesh axes, tried in order; an axis that does not divide the size is left out, and an earlier letter of a
# table takes an axis before a later one. Parameters shard their width over `fsdp`; activations never shard D.
MODEL_AXES: Mapping[str, tuple[str, ...]] = {
    "L": ("stage",),
    "E": ("expert",),
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
}
SHARDED_AXES: Mapping[str, tuple[str, ...]] = {**MODEL_AXES, "D": ("fsdp",)}
ACTIVATION_AXES: Mapping[str, tuple[str, ...]] = {
    "A": ("stage",),
    "B": BATCH_AXES,
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
    "T": ("context",),
}


def parameter_axes(zero: int) -> Mapping[str, tuple[str, ...]]:
    """Return the table of the parameters at a ZeRO stage: sharded over `fsdp` at stage 3."""
    return SHARDED_AXES if zero >= 3 else MODEL_AXES


def gradient_axes(zero: int) -> Mapping[str, tuple[str, ...]]:
    """Return the table of accumulated gradients: sharded over `fsdp` from stage 2 on."""
    return SHARDED_AXES if zero >= 2 else MODEL_AXES


def optimizer_axes(zero: int) -> Mapping[str, tuple[str, ...]]:
    """Return the table of the optimizer's state, sharded over `fsdp` from stage 1 on; the moving average too."""
    return SHARDED_AXES if zero >= 1 else MODEL_AXES


def letters(path: str) -> str:
    """Return a parameter's dimension letters.

    Raises:
      KeyError: the path is not in the table (a new parameter must be added to it).
    """
    return PARAMETERS[path]


def partition(
    dims: str, sizes: tuple[int, ...], table: Mapping[str, tuple[str, ...]], mesh: Mapping[str, int]
) -> tuple[tuple[str, ...] | None, ...]:
    """Return, per dimension, the mesh axes that shard it (None: not sharded).

    Args:
      dims: dimension letters, e.g. `LDNH`.
      sizes: the array's shape.
      table: letter -> mesh axes.
      mesh: mesh axis -> size.

    An axis is used where it still divides the dimension and no earlier letter of the table (of equal letters, no
    earlier dimension) uses it. The width of a vector (norms, biases) is not sharded: it is a collective for nothing.
    """
    if dims.removeprefix("L") == "D":
        table = {letter: axes for letter, axes in table.items() if letter != "D"}
    used: set[str] = set()
    spec: list[tuple[str, ...] | None] = [None] * len(dims)
    order = list(table)
    places = [place for place, letter in enumerate(dims) if letter in table]
    for place in sorted(places, key=lambda place: order.index(dims[place])):
        size, chosen = sizes[place], []
        for axis in table[dims[place]]:
            if axis not in used and mesh.get(axis, 1) > 1 and size % mesh[axis] == 0:
                chosen.append(axis)
                used.add(axis)
                size //= mesh[axis]
        spec[place] = tuple(chosen) or None
    return tuple(spec)


# Kernels without their stacking letters -> how many leading dimensions are contracted.
_INPUTS = {"DNH": 1, "DKH": 1, "NHD": 2, "DF": 1, "FD": 1, "DR": 1, "DV": 1}


def matrix_axes(dims: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of a matmul's kernel, or None for norms, biases and embeddings.

    `LDNH` -> ((1,), (2, 3)): D is contracted, N and H come out, L is a stack of such matrices.
    `LNHD` -> ((1, 2), (3,)); `LEDF` is L times E of them. This is what Muon orthogonalizes and what
    fans are taken from; array rank says nothing about it.
    """
    for stack in ("", "L", "LE"):
        core = dims.removeprefix(stack)
        if dims.startswith(stack) and core in _INPUTS:
            first, cut = len(stack), len(stack) + _INPUTS[core]
            return tuple(range(first, cut)), tuple(range(cut, len(dims)))
    return None


def is_matrix(path: str) -> bool:
    """True for kernels inside the blocks (Muon's parameters): not embeddings, head, router, norms or biases."""
    dims = letters(path)
    return path.startswith("layers/") and dims != "LDR" and matrix_axes(dims) is not None


def is_decayed(path: str) -> bool:
    """True for what weight decay acts on: kernels and embeddings, not norms and biases."""
    return path.endswith(("/kernel", "/embedding"))
