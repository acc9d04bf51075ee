"""Every way of dividing a model over devices beside one device: the same loss, gradients and training.

    python -m experiments.benchmarks.equivalence             # all rows, on 8 simulated CPU devices
    python -m experiments.benchmarks.equivalence "ZeRO 3" EP # some

A small transformer with grouped queries (N 4, K 2), packed documents and unequal masks in 4 micro-batches; for
the experts' rows a mixture of 4. "gradients" is the norm of the difference over the norm of one device's gradients,
all parameters together, and "worst" that of the worst parameter; "losses" the largest difference of 5 AdamW steps.
Measured with jax 0.10.2 on a 2-core CPU, all f32:

                           devices  gradients    worst   losses
    DP                           8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    ZeRO 0                       8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    ZeRO 1                       8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    ZeRO 2                       8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    ZeRO 3                       8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    HSDP                         8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    TP                           4    3.0e-07  4.9e-07  0.0e+00  layers/mlp_norm/scale
    TP+SP                        4    3.2e-07  5.3e-07  4.8e-07  layers/attention/key/kernel
    PP GPipe                     4    6.5e-08  7.3e-08  4.8e-07  layers/attention_norm/scale
    PP circular                  2    9.0e-08  1.2e-07  4.8e-07  embed/tokens/embedding
    CP ring                      4    3.1e-07  4.9e-07  4.8e-07  layers/attention/key/kernel
    CP Ulysses                   4    3.0e-07  4.8e-07  4.8e-07  layers/attention/query/kernel
    DP x TP                      8    3.2e-07  4.8e-07  4.8e-07  layers/attention/key/kernel
    ZeRO 3 x TP                  8    3.2e-07  4.8e-07  4.8e-07  layers/attention/key/kernel
    PP x DP                      4    1.6e-07  1.7e-07  4.8e-07  layers/mlp/up/kernel
    PP x TP x DP                 8    3.2e-07  5.1e-07  4.8e-07  layers/attention/key/kernel
    ZeRO 3 x CP                  8    3.0e-07  5.0e-07  4.8e-07  layers/attention/query/kernel
    ZeRO 3 x CP x TP             8    3.2e-07  5.0e-07  4.8e-07  layers/attention/key/kernel
    PP circular x ZeRO 3         8    3.0e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    EP                           4    3.1e-07  4.7e-07  4.8e-07  layers/attention/query/kernel
    EP x DP                      8    3.1e-07  4.8e-07  4.8e-07  layers/attention/query/kernel
    EP x ZeRO 3 x TP             8    3.2e-07  4.9e-07  4.8e-07  layers/attention/key/kernel
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Mapping

# Rows of the table: config fields that differ from one device's. 18 tokens do not divide over 4 devices, so that "TP"
# leaves the norms whole.
CASES: Mapping[str, Mapping[str, str]] = {
    "DP": {"data": "8"},
    "ZeRO 0": {"fsdp": "8", "zero": "0"},
    "ZeRO 1": {"fsdp": "8", "zero": "1"},
    "ZeRO 2": {"fsdp": "8", "zero": "2"},
    "ZeRO 3": {"fsdp": "8", "zero": "3"},
    "HSDP": {"data": "2", "fsdp": "4"},
    "TP": {"tensor": "4", "data.sequence_length": "18"},
    "TP+SP": {"tensor": "4"},
    "PP GPipe": {"stage": "4"},
    "PP circular": {"stage": "2", "pipeline_repeats": "2"},
    "CP ring": {"context": "4"},
    "CP Ulysses": {"context": "4", "context_method": "ulysses"},
    "DP x TP": {"data": "4", "tensor": "2"},
    "ZeRO 3 x TP": {"fsdp": "4", "tensor": "2"},
    "PP x DP": {"stage": "2", "data": "2"},
    "PP x TP x DP": {"stage": "2", "tensor": "2", "data": "2"},
    "ZeRO 3 x CP": {"fsdp": "4", "context": "2"},
    "ZeRO 3 x CP x TP": {"fsdp": "2", "context": "2", "tensor": "2"},
    "PP circular x ZeRO 3": {"stage": "2", "pipeline_repeats": "2", "fsdp": "4"},
    "EP": {"expert": "4"},
    "EP x DP": {"expert": "4", "data": "2"},
    "EP x ZeRO 3 x TP": {"expert": "2", "fsdp": "2", "tensor": "2"},
}
_SMALL = {
    "model.num_layers": "4",
    "model.d_model": "64",
    "model.num_heads": "4",
    "model.num_kv_heads": "2",
    "model.vocab_size": "96",
    "data.sequence_length": "16",
    "data.batch_size": "32",
    "optimizer.accumulation_steps": "4",
    "optimizer.warmup_steps": "0",
    "optimizer.clip_norm": "None",
}
_MIXTURE = {"model.num_experts": "4", "model.d_ff": "32"}
STEPS = 5


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far from one device a divided model is."""

    gradients: float  # of the global norm
    worst: tuple[str, float]  # parameter, and its gradient's difference over that gradient's norm
    losses: float  # nats


def compare(name: str) -> Difference:
    """Train a few steps both ways and compare."""
    import numpy as np

    fields = {key if "." in key else f"parallel.{key}": value for key, value in CASES[name].items()}
    common = _SMALL | (_MIXTURE if "expert" in CASES[name] else {})
    common |= {key: value for key, value in fields.items() if not key.startswith("parallel.")}
    gradients, losses = _trained(common | {"parallel.data": "1"} | fields)
    one_gradients, one_losses = _trained_on_one(tuple(common.items()))
    apart = {path: np.linalg.norm(gradients[path] - one_gradients[path]) for path in one_gradients}
    norms = {path: np.linalg.norm(gradient) for path, gradient in one_gradients.items()}
    shares = {path: float(apart[path] / norms[path]) for path in apart}
    worst = max(shares, key=shares.get)
    whole = math.hypot(*apart.values()) / math.hypot(*norms.values())
    return Difference(whole, (worst, shares[worst]), float(np.max(np.abs(np.subtract(losses, one_losses)))))


@functools.cache  # most rows have the same
def _trained_on_one(overrides: tuple[tuple[str, str], ...]) -> tuple[dict, list[float]]:
    return _trained(dict(overrides))


def _trained(overrides: Mapping[str, str]) -> tuple[dict, list[float]]:
    """Return the first step's gradients by path, and the losses of all steps."""
    import jax
    import numpy as np

    from lm.axes import MESH_AXES
    from lm.config import apply_overrides, default
    from lm.parallel.mesh import make_mesh, place_batch, replicated
    from lm.resolve import resolve
    from lm.train.step import build_step, step_scalars
    from lm.tree import map_with_path

    config = default()
    apply_overrides(config, list(overrides.items()))
    devices = math.prod(int(overrides.get(f"parallel.{axis}", 1)) for axis in MESH_AXES)
    config = resolve(config, devices=devices)
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    built, micro = build_step(config, mesh), config.optimizer.accumulation_steps
    T, B = config.data.sequence_length, config.data.batch_size
    whole = _batch(B, T, config.model.vocab_size)
    build = lambda rows, columns: {key: a[rows][:, columns] for key, a in whole.items()}  # noqa: E731
    batch, state, losses = place_batch(mesh, (micro, B // micro, T), build), built.init(), []
    gradients: dict[str, np.ndarray] = {}

    def of_moment(path: str, leaf) -> None:
        # Adam's first moment after one step is (1 - b1) times the gradient.
        if "/mu/" in path:
            gradients[path.split("/mu/")[1]] = np.asarray(leaf) / (1 - config.optimizer.b1)

    for step in range(STEPS):
        state, metrics = built.step(state, batch, jax.device_put(step_scalars(config, step), replicated(mesh)))
        losses.append(float(metrics["loss"]))
        if step == 0:
            map_with_path(of_moment, state.opt_state)
    return gradients, losses


def _batch(B: int, T: int, vocab_size: int) -> dict:
    """Rows of two or three documents, of which different numbers of tokens count."""
    import numpy as np

    random = np.random.default_rng(0)
    tokens = random.integers(0, vocab_size, (B, T + 1)).astype(np.int32)
    cut_B3 = np.sort(random.integers(1, T, (B, 2)), axis=1)
    at_T = np.arange(T)
    segment_BT = 1 + np.sum(at_T[None, None] >= cut_B3[:, :, None], axis=1)
    starts_BT = np.where(segment_BT == 1, 0, np.where(segment_BT == 2, cut_B3[:, :1], cut_B3[:, 1:]))
    return {
        "inputs_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "weights_BT": (at_T[None] < random.integers(1, T + 1, (B, 1))).astype(np.float32),
        "segment_ids_BT": segment_BT.astype(np.int32),
        "positions_BT": (at_T[None] - starts_BT).astype(np.int32),
        "target_bytes_BT": random.integers(1, 5, (B, T)).astype(np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(CASES)}")
    names = parser.parse_args().cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print(f"{'':22}{'devices':>8}{'gradients':>11}{'worst':>9}{'losses':>9}")
    for name in names:
        difference = compare(name)
        devices = math.prod(int(CASES[name].get(axis, 1)) for axis in _axes())
        print(
            f"{name:22}{devices:8}{difference.gradients:11.1e}{difference.worst[1]:9.1e}{difference.losses:9.1e}"
            f"  {difference.worst[0]}"
        )
        sys.stdout.flush()


def _axes() -> tuple[str, ...]:
    from lm.axes import MESH_AXES

    return MESH_AXES


if __name__ == "__main__":
    main()
