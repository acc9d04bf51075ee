"""What a step of each architecture must send on each mesh, by formula, and what its compiled program sends.

    python -m tests.parallel.contract                     # all architectures on all meshes: a table, and what deviates
    python -m tests.parallel.contract gemma2,gpt2 tensor  # some

The formulas count what the sharding calls for, of a model under remat `full` with A micro-batches, L layers that a
window pattern of P puts in L / P turns of the loop, and M matrices a layer. `lm.plan.collectives` counts a collective
in a loop as often as the loop turns.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from tests import conftest  # noqa: F401  (simulated devices, before jax is imported)

import jax  # isort: skip
from jax.sharding import Mesh

from lm.axes import BATCH_AXES, MESH_AXES, PARAMETERS, optimizer_axes, partition
from lm.config import Config, ModelConfig
from lm.kernels.activations import GATED
from lm.model import Transformer
from lm.parallel.mesh import make_mesh
from lm.plan.collectives import Collective, collectives
from lm.presets import PRESETS
from lm.train.aot import abstract_inputs
from lm.train.step import build_step
from tests.train.common import small_config

A, T = 2, 16

# Of each architecture one preset, or the fields that no preset has.
FAMILIES: Mapping[str, str | Mapping] = {
    "llama": "llama_7b",
    "llama3.2": "llama3.2_1b",
    "gpt2": "gpt2",
    "mistral": "mistral_7b",
    "mixtral": "mixtral_8x7b",
    "qwen2": "qwen2_0.5b",
    "qwen3": "qwen3_8b",
    "qwen3_moe": "qwen3_30b_a3b",
    "gemma2": "gemma2_2b",
    "gemma3": "gemma3_4b",
    "mup": {"mup_base_width": 32, "value_embeddings": True, "activation": "relu2", "logit_softcap": 30.0},
}
MESHES: Mapping[str, Mapping[str, str]] = {
    "data": {"data": "8"},
    "zero1": {"fsdp": "8", "zero": "1"},
    "zero2": {"fsdp": "8", "zero": "2"},
    "zero3": {"fsdp": "8"},
    "hsdp": {"data": "2", "fsdp": "4"},
    "fsdp x tensor": {"fsdp": "4", "tensor": "2"},
    "tensor": {"tensor": "4"},
    "stage x data": {"stage": "2", "data": "2"},
    "stage x tensor": {"stage": "2", "tensor": "2"},
    "context": {"context": "4"},
    "expert": {"expert": "4"},
    "expert capacity": {"expert": "4", "model.expert_capacity": "2.0"},
    "expert x fsdp x tensor": {"expert": "2", "fsdp": "2", "tensor": "2"},
}
ROW_SUMS = 5  # scalars that a mixture reports, of them 2 losses (lm.model.experts)
ROW_LOSSES = 2


def shrunk(name: str) -> dict[str, str]:
    """Return overrides that make a small model of an architecture, or a preset, of two turns of its pattern or more."""
    fields = FAMILIES.get(name, name)
    fields = dict(PRESETS[fields] if isinstance(fields, str) else fields)
    period = max(len(fields.get(key, (None,))) for key in ("window", "rope_base", "rope_factor"))
    is_grouped = fields.get("num_kv_heads") != fields.get("num_heads")
    fields |= {"num_layers": max(4, 2 * period), "d_model": 64, "num_heads": 4, "head_dim": 16, "vocab_size": 96}
    fields |= {"num_kv_heads": 2 if is_grouped else 4, "d_ff": 96, "remat": "full"}
    if "max_positions" in fields:
        fields["max_positions"] = T
    if "num_experts" in fields:
        fields |= {"num_experts": 4, "experts_per_token": 2, "d_ff": 32}
    # So short that a ring of 4 leaves out a step.
    fields["window"] = tuple(window and 3 for window in fields.get("window", (None,)))
    return {f"model.{key}": str(value) for key, value in fields.items()}


def compiled(overrides: Mapping[str, str], sizes: Mapping[str, str]) -> tuple[str, Config, Mesh]:
    """Return the step's program on as many devices as the mesh has; `sizes` are fields of `config.parallel`, or any."""
    devices = math.prod(int(sizes.get(axis, 1)) for axis in MESH_AXES)
    shape = {"data.sequence_length": str(T), "optimizer.accumulation_steps": str(A), "parallel.data": "1"}
    fields = {name if "." in name else f"parallel.{name}": value for name, value in sizes.items() if name != "fsdp"}
    config = small_config(devices, int(sizes.get("fsdp", 1)), **(shape | dict(overrides) | fields))
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    built = build_step(config, mesh)
    return built.step.lower(built.state, *abstract_inputs(config, mesh)).compile().as_text(), config, mesh


def expected(config: Config, mesh: Mesh) -> Counter:
    """Return (kind, axes) -> how often it runs in a step, of all kinds but all-reduce."""
    model, sent = config.model, Counter()
    turns = math.ceil(model.num_layers / model.period)
    layers, passes, calls = model.num_layers, A, A
    if mesh.shape["stage"] > 1:  # one call for all micro-batches, in which each stage applies its layers every tick
        stages = mesh.shape["stage"]
        layers, passes, calls = layers // stages, A + stages - 1, 1
        # Up to the next stage and down the conveyor, forward and backward, and once home.
        sent["collective-permute", ("stage",)] += 2 * (2 * passes + 1)
        sides = 1 + (model.positions == "rope") + model.value_embeddings  # segments, positions, tokens: what is used
        sent["all-gather", ("stage",)] += sides + (ROW_LOSSES if model.num_experts else 0)  # and the losses' cotangents
        sent["reduce-scatter", ("stage",)] += ROW_SUMS if model.num_experts else 0

    if mesh.shape["fsdp"] > 1:
        inside, outside = matrices(model)
        scatters, gathers = {
            1: (inside + outside, inside + outside),  # gradients once a step; the new parameters
            2: (A * (inside + outside), inside + outside),  # gradients every micro-batch
            # Each turn's parameters forward and backward. Those of the first turn and those outside the layers are the
            # same in all micro-batches, and the compiler gathers them once.
            3: (A * (inside * turns + outside), inside * (2 * A * turns + 1) + outside),
        }[config.parallel.zero]
        sent["reduce-scatter", ("fsdp",)] += scatters
        sent["all-gather", ("fsdp",)] += gathers

    if mesh.shape["tensor"] > 1:
        # Attention and feed-forward gather the sequence and scatter their sums. Backward does the transposes, after
        # what it computes anew: not a layer's last scatter, whose result is the next layer's input, but for a norm
        # behind it. Around the layers: the embedding's scatter, the loss's gather, their transposes, and two numbers
        # per token of the loss.
        has_norm_behind = model.norm_placement != "pre"
        sent["all-gather", ("tensor",)] += passes * layers * 6 + calls * 3
        sent["reduce-scatter", ("tensor",)] += passes * layers * (6 if has_norm_behind else 5) + calls * 2

    if mesh.shape["expert"] > 1:
        if (
            model.expert_capacity
        ):  # there and back: forward, again (the gates' gradient takes what comes back), backward
            sent["all-to-all", ("expert",)] += passes * layers * 6
        else:  # tokens, choices and gates forward and again, the gradient of what comes back; the transposes
            sent["all-gather", ("expert",)] += passes * layers * 7
            sent["reduce-scatter", ("expert",)] += passes * layers * 3
    return Counter({key: runs for key, runs in sent.items() if runs})


def matrices(model: ModelConfig) -> tuple[int, int]:
    """Return how many parameters with a width to divide a layer has, and how many stand outside the layers."""
    feed_forward = 2 + (model.activation in GATED) + bool(model.num_experts)  # up, down, gate, router
    return 4 + feed_forward, 1 + (not model.tie_embeddings) + (model.positions == "learned")


def ring_sends(model: ModelConfig, context: int) -> int:
    """Return how many arrays of keys or values, or of their gradients, a device sends in a step, of A micro-batches.

    In s sends keys and values pass all devices whose tokens a window reaches; forward, and once more for what is
    computed anew and for the backward pass together. Gradients go round with them, and home.
    """
    chunk, total = T // (2 * context), 0
    for layer in range(model.num_layers):
        window = model.per_layer("window", layer)
        reach = math.inf if window is None else (window + chunk - 2) // chunk  # chunks back
        sends = sum(min(step, context - step) <= reach for step in range(1, context))
        total += 2 * sends + 2 * sends + 2 * (sends + 1)
    return A * total


def gradient_bytes(params: Any, zero: int, mesh: Mesh) -> dict[tuple[str, ...], int]:
    """Return axes -> bytes of the gradients that are all-reduced over them: in f32, over what does not divide them."""
    table, sizes, found = optimizer_axes(zero), dict(mesh.shape), defaultdict(int)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = "/".join(key.key for key in keys)
        dividing = {axis for axes in partition(PARAMETERS[path], leaf.shape, table, sizes) for axis in axes or ()}
        axes = tuple(axis for axis in MESH_AXES if sizes[axis] > 1 and axis not in dividing)
        found[axes] += 4 * leaf.size // math.prod(sizes[axis] for axis in dividing)
    return dict(found)


def deviations(config: Config, mesh: Mesh, text: str) -> list[str]:
    """Return in what a program's collectives are not those of the formulas, a line each."""
    found, lines = collectives(text, mesh), []
    if mesh.shape["context"] > 1:
        ring = [c for c in found if c.kind == "collective-permute" and c.axes == ("context",)]
        largest = max((c.bytes for c in ring), default=0)
        heads = sum(c.executions for c in ring if c.bytes == largest)
        lines += _differs("heads around the ring", heads, ring_sends(config.model, mesh.shape["context"]))
        ids = sum(c.executions for c in ring) - heads
        if ids > heads / 2:  # with keys and values, or fewer: they are the same in all layers
            lines.append(f"segment ids around the ring: {ids} times, keys and values {heads}")
        found = [c for c in found if c not in ring]

    runs = Counter()
    for c in found:
        runs[c.kind, c.axes] += c.executions if c.kind != "all-reduce" else 0
    wanted = expected(config, mesh)
    for kind, axes in sorted({key for key in (*runs, *wanted) if key[0] != "all-reduce"}):
        lines += _differs(f"{kind} over {'+'.join(axes)}", runs[kind, axes], wanted[kind, axes])
    return lines + _reductions(config, mesh, [c for c in found if c.kind == "all-reduce"])


def _reductions(config: Config, mesh: Mesh, found: list[Collective]) -> list[str]:
    """Gradients are all-reduced once a step, all of the same axes together; beside them travel single numbers."""
    model, stages, lines = config.model, mesh.shape["stage"], []
    params = jax.eval_shape(Transformer(model, config.precision).init, jax.random.key(0))
    gradients = gradient_bytes(params, config.parallel.zero, mesh)
    # Each gradient's square for its norm (which clipping and the metric take), and the objective's sums.
    numbers = 4 * (2 * len(jax.tree.leaves(params)) + 8)
    batch = tuple(axis for axis in (*BATCH_AXES, "context") if mesh.shape[axis] > 1)
    for axes in sorted({c.axes for c in found} | {axes for axes in gradients if axes}):
        name, wanted, layer_bytes, limit = f"all-reduce over {'+'.join(axes)}", gradients.get(axes, 0), 0, 5
        if model.num_experts and axes == batch:
            # A mixture's sums of each layer: forward, again, and their cotangents; the count of tokens is the same in
            # all layers.
            layer_bytes = 4 * (2 * model.num_experts + 2)
            limit += (A + stages - 1) * (3 * model.num_layers // stages + 1)
        here = [c for c in found if c.axes == axes]
        size = sum(c.bytes * c.executions for c in here if c.bytes > layer_bytes)
        if not wanted <= size <= wanted + numbers:
            lines.append(f"{name}: {size} bytes, for gradients of {wanted} and up to {numbers} of numbers")
        if (runs := sum(c.executions for c in here)) > limit:
            lines.append(f"{name}: {runs} times, not up to {limit}")
        large = sum(c.executions for c in here if c.bytes > numbers)
        lines += _differs(f"{name}, of gradients", large, int(wanted > numbers))
    return lines


def _differs(what: str, count: int, wanted: int) -> list[str]:
    return [] if count == wanted else [f"{what}: {count} times, not {wanted}"]


def check(family: str, mesh_name: str) -> list[str] | None:
    """Return the deviations of an architecture on a mesh; None: it has no experts to spread."""
    overrides = shrunk(family)
    if "expert" in MESHES[mesh_name] and "model.num_experts" not in overrides:
        return None
    text, config, mesh = compiled(overrides, MESHES[mesh_name])
    return deviations(config, mesh, text)


def main(families: str = ",".join(FAMILIES), meshes: str = ",".join(MESHES)) -> None:
    names = meshes.split(",")
    print(" " * 12 + " ".join(f"{name:>7}" for name in names))
    for family in families.split(","):
        print(f"{family:12}", end="")
        noted = []
        for name in names:
            lines = check(family, name)
            noted += [f"  {name}: {line}" for line in lines or ()]
            word = "-" if lines is None else "DIFFERS" if lines else "ok"
            print(f"{word:>{max(7, len(name))}}", end=" ", flush=True)
        print("", *noted, sep="\n" if noted else "", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
