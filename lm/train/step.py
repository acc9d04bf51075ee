"""The training step: `(state, batch, hparams) -> (state, metrics)`, pure and compiled once."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from lm.axes import optimizer_axes, parameter_axes
from lm.config import Config, DataConfig, OptimizerConfig
from lm.errors import ConfigError
from lm.kernels.linear import in_compute_type
from lm.model import Transformer
from lm.objectives import load_objective
from lm.optim import build_optimizer, hyperparameters
from lm.parallel.auto import auto_layout
from lm.parallel.local import LocalModel, local_model
from lm.parallel.mesh import batch_spec, optimizer_shardings, parameter_shardings, replicated
from lm.train import ema, loss_scale, rounding

_ROUNDING = 2**32 - 1  # folded into the step's key; micro-batches fold in their numbers


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "frozen", "opt_state", "extra"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and the frozen parameters beside it."""

    step: jax.Array  # int32, optimizer steps done
    params: Any  # trainable parameters
    frozen: Any  # parameters that get no gradient; merged under `params` in the forward pass
    opt_state: Any
    extra: Any  # `ema` (`optimizer.ema_decay`) and `loss_scale` (fp16), each where it is in use


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A model, its abstract state with shardings, and the functions compiled for them."""

    model: Transformer  # for generation
    mesh: Mesh
    local: LocalModel  # as it is trained
    state: TrainState  # jax.ShapeDtypeStruct leaves that carry shardings; nothing is allocated
    init: Callable[..., TrainState]  # (params to start from or None, seed); each shard is made on its own device
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]  # jitted, state donated
    train_step: Callable  # `step` as it is before `jit`, to be transformed (`lm.sweep.together`)
    gradients: Callable  # (params, frozen, batch, grad_scale, key) -> (gradients, the objective's sums); not jitted
    # `step` compiled, by (rows, tokens per row) of its batch; runs that share a `BuiltStep` share these.
    programs: dict[tuple[int, int], Callable] = dataclasses.field(default_factory=dict, init=False, compare=False)

    def evaluation_params(self, state: TrainState) -> Any:
        """Return the parameters to evaluate and sample with: their moving average where there is one."""
        return state.extra.get("ema", state.params)


def build_model(config: Config, mesh: Mesh) -> Transformer:
    """Return the model for generation on a mesh (`lm.parallel.auto`)."""
    return Transformer(config.model, config.precision, auto_layout(mesh))


def step_scalars(config: Config, step: int) -> dict[str, np.generic]:
    """Return what the compiled step takes as `hparams` at a step: `lm.optim.hyperparameters`, and the seed.

    Configs that differ in these alone share one program.
    """
    scalars = {name: np.float32(value) for name, value in hyperparameters(config.optimizer, step).items()}
    return {**scalars, "seed": np.uint32(config.seed)}


# Fields that the compiled step takes as inputs (`step_scalars`), and those of the schedule behind them.
INPUTS = (
    *("learning_rate", "adam_learning_rate", "weight_decay", "b1", "b2", "muon_momentum", "muon_b2", "clip_norm"),
    *("adafactor_decay", "adafactor_clip", "num_steps", "warmup_steps", "schedule", "final_learning_rate"),
    "decay_fraction",
)
_DATA = ("sequence_length", "batch_size", "stages", "document_mask")  # what the step depends on of the data


def program_config(config: Config) -> Config:
    """Return a config with all that its compiled step does not depend on at the default: equal ones share a program."""
    inputs = {name: getattr(OptimizerConfig, name) for name in INPUTS}
    return Config(
        objective=config.objective,
        z_loss=config.z_loss,
        model=config.model,
        data=DataConfig(**{name: getattr(config.data, name) for name in _DATA}),
        optimizer=dataclasses.replace(config.optimizer, **inputs),
        precision=config.precision,
        parallel=config.parallel,
    )


def build_step(config: Config, mesh: Mesh) -> BuiltStep:
    """Return the step for a resolved config with its `vocab_size` filled in; allocates nothing.

    The batch holds `[A, B / A, T]` arrays: A micro-batches whose gradients are summed. The loss is
    normalized by the token weight of the whole global batch, so accumulation over unequal masks
    equals one large batch. `hparams` is `step_scalars(...)` on the devices.
    """
    model, micro_batches = build_model(config, mesh), config.optimizer.accumulation_steps
    local = local_model(config, mesh, micro_batches=micro_batches, whole_rows=not config.data.document_mask)
    zero = local.zero
    objective = _objective(config)
    precision, ema_decay = config.precision, config.optimizer.ema_decay
    is_scaled = precision.compute == "float16"

    def make_state(params, seed) -> TrainState:
        params = model.init(jax.random.key(seed)) if params is None else params
        optimizer = build_optimizer(config, hyperparameters(config.optimizer, 0))
        extra = {"ema": ema.initial(params)} if ema_decay is not None else {}
        extra |= {"loss_scale": loss_scale.initial(precision)} if is_scaled else {}
        return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(_f32(params)), extra)

    def gradients(params, frozen, batch, grad_scale, step_key):
        """Return the gradients of the whole batch and the objective's sums; in the region (`lm.parallel.local`)."""

        def loss_fn(params, micro_batch, dropout_key):
            dropout_key = dropout_key if config.model.dropout else None
            params = {**frozen, **params}
            return local.objective(objective, params, micro_batch, grad_scale=grad_scale, dropout_key=dropout_key)

        def of_micro_batch(number, micro_batch):
            key = zero.token_key(jax.random.fold_in(step_key, number), micro_batch["inputs_BT"].shape[1])
            grads, sums = jax.grad(loss_fn, has_aux=True)(params, micro_batch, key)
            return zero.reduce_micro_batch(_f32(grads)), sums

        def accumulate(total, xs):
            return jax.tree.map(jnp.add, total, of_micro_batch(*xs)), None

        if config.parallel.stage > 1:  # all micro-batches in one call: they flow through the pipeline
            grads, sums = of_micro_batch(0, jax.tree.map(lambda a: a.reshape(-1, a.shape[2]), batch))
        elif micro_batches == 1:
            grads, sums = of_micro_batch(0, jax.tree.map(lambda a: a[0], batch))
        else:  # no turn outside the loop: XLA would run it beside the loop's, with two turns' activations in memory
            numbered = jnp.arange(micro_batches), batch
            shapes = jax.eval_shape(of_micro_batch, *jax.tree.map(lambda a: a[0], numbered))
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, numbered)
        return zero.reduce(grads), zero.sum(sums)

    def train_step(state: TrainState, batch, hparams):
        tokens = jnp.sum(batch["weights_BT"])
        step_key = jax.random.fold_in(jax.random.key(hparams["seed"]), state.step)
        optimizer = build_optimizer(config, hparams)
        opt_state = jax.device_put(state.opt_state, on_device) if is_offloaded else state.opt_state
        training_params = optimizer.training_params(state.params, opt_state)
        grad_scale = 1 / jnp.maximum(tokens, 1)
        if is_scaled:  # before anything is rounded to fp16: the cross-entropy makes its gradient in the forward pass
            grad_scale = grad_scale * state.extra["loss_scale"]["scale"]

        grads, sums = all_gradients(training_params, state.frozen, batch, grad_scale, step_key)
        if is_scaled:
            grads = jax.tree.map(lambda g: g / state.extra["loss_scale"]["scale"], grads)

        # Updated where the optimizer's state is; at stages 1 and 2 the new parameters are gathered.
        params = as_optimizer(state.params)
        updates, opt_state = optimizer.update(grads, opt_state, _f32(params))
        if precision.stochastic_rounding:
            params = rounding.apply_updates(params, updates, jax.random.fold_in(step_key, _ROUNDING))
        else:
            params = optax.apply_updates(params, updates)
        extra = dict(state.extra)
        if ema_decay is not None:
            extra["ema"] = ema.updated(state.extra["ema"], params, ema_decay, state.step)
        new = dataclasses.replace(state, params=params, opt_state=opt_state, extra=extra)

        others = {name: value for name, value in sums.items() if name not in ("nll", "tokens")}
        metrics = {
            "loss": sums["nll"] / jnp.maximum(tokens, 1),
            "bits_per_byte": sums["nll"] / jnp.maximum(sums["bytes"], 1) / math.log(2),
            "grad_norm": optax.tree.norm(grads),
            "tokens": tokens,
            **{name: value if _is_count(name) else value / jnp.maximum(tokens, 1) for name, value in others.items()},
        }
        if is_scaled:
            new, scaling = loss_scale.skip_overflow(new, state, metrics, precision.loss_scale_interval)
            metrics |= scaling
        return dataclasses.replace(new, step=state.step + 1), metrics

    shapes = jax.eval_shape(make_state, None, np.uint32(0))
    table, optimizer_table = parameter_axes(zero.stage), optimizer_axes(zero.stage)
    shardings = TrainState(
        step=replicated(mesh),
        params=parameter_shardings(mesh, shapes.params, table),
        frozen=parameter_shardings(mesh, shapes.frozen, table),
        opt_state=optimizer_shardings(mesh, shapes.opt_state, optimizer_table),
        extra={
            name: parameter_shardings(mesh, part, optimizer_table)
            if name == "ema"
            else jax.tree.map(lambda _: replicated(mesh), part)
            for name, part in shapes.extra.items()
        },
    )
    on_device, is_offloaded = shardings.opt_state, config.parallel.offload_optimizer
    if is_offloaded:
        to_host = lambda sharding: sharding.with_memory_kind("pinned_host")  # noqa: E731
        shardings = dataclasses.replace(shardings, opt_state=jax.tree.map(to_host, on_device))
    in_specs = (
        zero.parameter_specs,
        jax.tree.map(lambda sharding: sharding.spec, shardings.frozen),
        batch_spec(),
        PartitionSpec(),
        PartitionSpec(),
    )

    all_gradients = zero.local(gradients, in_specs, (zero.gradient_specs, PartitionSpec()))

    def as_optimizer(params):
        if mesh.size == 1:
            return params
        laid = parameter_shardings(mesh, params, optimizer_table)
        return jax.tree.map(jax.lax.with_sharding_constraint, params, laid)

    exact_step = in_compute_type(train_step, precision.compute)
    jitted_init = jax.jit(make_state, out_shardings=shardings, compiler_options=_init_options(mesh))
    return BuiltStep(
        model=model,
        mesh=mesh,
        local=local,
        gradients=all_gradients,
        state=jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings),
        init=lambda params=None, seed=config.seed: jitted_init(params, np.uint32(seed)),
        step=jax.jit(exact_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        train_step=exact_step,
    )


def _objective(config: Config) -> Callable:
    """Return the objective, with the weight of its z-loss if that is on."""
    objective = load_objective(config.objective)
    if not config.z_loss:
        return objective
    accepted = inspect.signature(objective).parameters.values()
    if not any(p.name == "z_loss" or p.kind == p.VAR_KEYWORD for p in accepted):
        raise ConfigError(
            f"config.z_loss={config.z_loss}: the objective {config.objective} takes no z_loss; set it to 0."
        )
    return functools.partial(objective, z_loss=config.z_loss)


def _f32(tree: Any) -> Any:
    """The optimizer works and keeps its state in f32, whatever type the parameters have."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def _is_count(name: str) -> bool:
    """An objective's sums are counts or, summed over the tokens, means per token."""
    return name == "bytes" or name.endswith("_tokens")


def _init_options(mesh: Mesh) -> dict[str, int]:
    """Initialization runs once: on CPU its many random kernels take 4 times longer to optimize than to run."""
    return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}
