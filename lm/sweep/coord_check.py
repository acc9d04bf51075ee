"""The coordinate check: do activations, and what training changes of them, keep their size as the model gets wider?

Under a maximal-update parametrization every activation and its change against initialization have entries whose size
does not depend on the width (Yang et al. 2022, "Tensor Programs V", appendix D.1). So models of several widths take a
few steps on one batch, and a line is fitted to log2 of the root mean square over log2 of the width: its slope is 0
where the parametrization is right, and 0.5 or 1 in the layers where it is not.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Config, ParallelConfig, PrecisionConfig
from lm.errors import ConfigError
from lm.mesh_checks import resolve_mesh
from lm.model import Transformer
from lm.model.layers import Embedding, Norm
from lm.model.layout import Layout
from lm.parallel.mesh import make_mesh, place_batch, replicated
from lm.train.step import build_step, step_scalars

TOLERANCE = 0.1  # of a slope
KINDS = ("rms", "change")
MUP_INITIALIZERS = ("mup", "spectral")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Sizes of activations over widths under one parametrization, `[widths, seeds, steps + 1]` per activation."""

    widths: tuple[int, ...]
    rms: Mapping[str, np.ndarray]  # root mean square; step 0 is the initialization
    change: Mapping[str, np.ndarray]  # of the difference to step 0

    def sizes(self, kind: str, name: str, step: int = -1) -> np.ndarray:
        """Return an activation's size per width: the geometric mean over the seeds."""
        with np.errstate(divide="ignore"):
            return np.exp2(np.mean(np.log2(getattr(self, kind)[name][:, :, step]), axis=1))

    def slope(self, kind: str, name: str, step: int = -1) -> float | None:
        """Return the slope of log2 size over log2 width; None where all are 0, NaN where some are, or not finite."""
        sizes = self.sizes(kind, name, step)
        if not sizes.any():
            return None
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            return float("nan")
        return float(np.polyfit(np.log2(self.widths), np.log2(sizes), 1)[0])

    def judged(self) -> dict[tuple[str, str], float]:
        """Return the last step's slopes that must be 0, by (kind, activation).

        All but those of the whole logits and of routers: what a readout adds to them that starts at random falls with
        the width, and should (same paper, table 8). What it has learned is judged: `logits_learned`, `router_learned`.
        """
        names = [name for name in self.rms if name.rpartition("/")[2] not in ("logits", "router")]
        pairs = [(kind, name) for kind in KINDS for name in names]
        slopes = {pair: self.slope(*pair) for pair in pairs}
        return {pair: slope for pair, slope in slopes.items() if slope is not None}

    def wrong(self) -> dict[tuple[str, str], float]:
        """Return the judged slopes beyond `TOLERANCE`, the worst first."""
        size = lambda slope: abs(slope) if np.isfinite(slope) else np.inf  # noqa: E731
        wrong = {pair: slope for pair, slope in self.judged().items() if not size(slope) <= TOLERANCE}
        return dict(sorted(wrong.items(), key=lambda item: -size(item[1])))


def widened(config: Config, width: int) -> Config:
    """Return a resolved config at another `d_model`: more heads of the same width, `d_ff` in proportion.

    Query and key/value heads grow alike, so that queries per group stay. Experts and vocabulary keep their number.

    Raises:
      ConfigError: the heads would not be a whole number.
    """
    model, ratio = config.model, Fraction(width, config.model.d_model)
    heads = {name: ratio * getattr(model, name) for name in ("num_heads", "num_kv_heads")}
    for name, number in heads.items():
        if number.denominator > 1:
            raise ConfigError(
                f"width {width}: config.model.{name}={getattr(model, name)} at d_model={model.d_model} would become "
                f"{float(number):g}; choose widths at which heads of the same width are a whole number."
            )
    heads = {name: int(number) for name, number in heads.items()}
    model = dataclasses.replace(model, d_model=width, d_ff=round(ratio * model.d_ff), **heads)
    return dataclasses.replace(config, model=model)


def parametrizations(config: Config, base_width: int) -> dict[str, Config]:
    """Return a resolved config under muP and under standard parametrization.

    muP is as configured; without a `mup_base_width` it gets `base_width`, and the initializer `mup` in place of one
    that is not muP's. Standard parametrization has no base width, and `fan_in` in place of a muP initializer.
    """
    is_mup, initializer = config.model.mup_base_width is not None, config.model.initializer
    has_mup_init = initializer in MUP_INITIALIZERS
    mup = {
        "mup_base_width": config.model.mup_base_width or base_width,
        "initializer": initializer if is_mup or has_mup_init else "mup",
    }
    standard = {"mup_base_width": None, "initializer": "fan_in" if has_mup_init else initializer}
    return {
        name: dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
        for name, fields in (("muP", mup), ("standard", standard))
    }


def activations(model: Transformer, params: Any, initial: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a model's activations by name, in the order in which they come.

    Of each layer i: `layers/i/attention_logits` (of keys at or before the query), what each part of the block gives
    (`attention`, `mlp` or `experts`, and the experts' `router`), and `residual`, the stream after the block. Beside
    them `embedding`, `final_hidden` (normed, before muP's multiplier) and `logits`. Of a readout's two, `router_learned`
    and `logits_learned` are what its change against its initialization gives.

    Args:
      model: its layout is not used; the parameters are whole.
      params: of the model now.
      initial: what they were at initialization.
      batch: `inputs_BT`, `positions_BT`, `segment_ids_BT`.
    """
    found: dict[str, jax.Array] = {}
    learned, layer = jax.tree.map(jnp.subtract, params, initial), 0

    def record(call, args, kwargs, context):
        nonlocal layer
        out, module, path = call(*args, **kwargs), context.module, context.module.path
        value = out[0] if isinstance(out, tuple) else out
        if context.method_name != "__call__" or isinstance(module, nn.Dropout):
            pass
        elif path == () and isinstance(out, tuple):  # a block, by its contract
            found[f"layers/{layer}/residual"] = value
            layer += 1
        elif path == () and isinstance(module, Norm):
            found["final_hidden"] = value
        elif path == () and isinstance(module, Embedding) and module.letters == "VD":
            found["embedding"] = value
        elif path[-1:] == ("router",) or (len(path) == 1 and not isinstance(module, Norm)):
            found[f"layers/{layer}/{path[-1]}"] = value
            if path[-1] == "router":
                kernel_DR = learned["layers"]["experts"]["router"]["kernel"][layer]
                found[f"layers/{layer}/router_learned"] = jnp.einsum("BTD,DR->BTR", args[0], kernel_DR)
        return out

    def attention(q_BTNH, k_BSKH, v_BSKH, **options):
        keys_BSNH = jnp.repeat(k_BSKH, q_BTNH.shape[2] // k_BSKH.shape[2], axis=2)
        scale = options["scale"] or q_BTNH.shape[3] ** -0.5
        found[f"layers/{layer}/attention_logits"] = jnp.tril(scale * jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, keys_BSNH))
        return Layout().attention(q_BTNH, k_BSKH, v_BSKH, **options)

    def scan(body, x_BTD, params, xs, side, *, unroll):
        """A loop in Python: what is recorded in a compiled loop, or under `jax.checkpoint`, could not leave it."""
        del unroll
        outs = []
        for number in range(jax.tree.leaves(params)[0].shape[0]):
            own = jax.tree.map(lambda a, number=number: a[number], (params, xs))
            x_BTD, out = body(x_BTD, *own, side)
            outs.append(out)
        return x_BTD, jax.tree.map(lambda *a: jnp.stack(a), *outs)

    layout = Layout(attention=attention, scan=scan, remat=lambda layer, *_, **__: layer)
    model = dataclasses.replace(model, layout=layout)
    with nn.intercept_methods(record):
        hidden = model.hidden(params, batch["inputs_BT"], batch["positions_BT"], batch["segment_ids_BT"])
    found["logits"] = model.logits(params, hidden.x_BTD)
    found["logits_learned"] = model.logits(learned, hidden.x_BTD)
    return found


def measure(
    config: Config,
    widths: Sequence[int],
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    steps: int,
    progress: Callable[[], None] = lambda: None,
) -> Growth:
    """Train at each width, from each seed, and return the sizes of the activations.

    The learning rate is the peak one from the first step on; one device, f32, no dropout, no accumulation.

    Args:
      config: of `parametrizations`, with its `vocab_size`.
      widths: increasing.
      batches: one per seed, `[B, T]` arrays as `lm.data.loader.Loader.batch` gives them; all steps are on it.
      steps: after each of which activations are looked at.
      progress: called after each model's steps.
    """
    config = _checked(config)
    sizes = [_sizes_at(widened(config, width), batches, steps, progress) for width in widths]
    names = list(sizes[0][0][0])
    rms, change = (
        {name: np.array([[[at[name][i] for at in of_seed] for of_seed in of] for of in sizes]) for name in names}
        for i in range(2)
    )
    return Growth(tuple(widths), rms, change)


def _checked(config: Config) -> Config:
    """Return a config without what is not the scaling with the width."""
    once = {"schedule": "constant", "warmup_steps": 0, "accumulation_steps": 1, "ema_decay": None}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        optimizer=dataclasses.replace(config.optimizer, **once),
        precision=PrecisionConfig(),
        parallel=resolve_mesh(ParallelConfig(data=1), 1),
    )


def _sizes_at(config: Config, batches, steps: int, progress) -> list[list[dict[str, tuple[float, float]]]]:
    """Return, per seed and step, (root mean square, that of the change) of each activation."""
    mesh = make_mesh(config.parallel, jax.devices()[:1])
    built = build_step(config, mesh)
    look = jax.jit(functools.partial(activations, Transformer(config.model, config.precision)))

    @jax.jit
    def compare(now, before):
        rms = lambda a: jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32))))  # noqa: E731
        return {name: (rms(now[name]), rms(now[name] - before[name])) for name in now}

    def of_seed(seed: int, numpy_batch) -> list[dict[str, tuple[float, float]]]:
        shape = (1, *numpy_batch["inputs_BT"].shape)
        whole = lambda rows, columns: {name: a[rows][:, columns] for name, a in numpy_batch.items()}  # noqa: E731
        batch = place_batch(mesh, shape, whole)
        rows = jax.tree.map(lambda a: a[0], batch)
        state = built.init(None, seed)
        initial = jax.tree.map(jnp.copy, state.params)  # the step donates its state
        before = look(initial, initial, rows)
        out = [compare(before, before)]
        for step in range(steps):
            state, _ = built.step(state, batch, jax.device_put(step_scalars(config, step), replicated(mesh)))
            out.append(compare(look(state.params, initial, rows), before))
        progress()
        return jax.tree.map(float, jax.device_get(out))

    return [of_seed(seed, batch) for seed, batch in enumerate(batches)]
