"""What ZeRO saves on TPUs, from compiled programs, and that doing it by hand would save no more."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.axes import PARAMETERS, SHARDED_AXES
from lm.config import Config, apply_overrides, default
from lm.objectives import next_token
from lm.parallel.local import local_model
from lm.parallel.mesh import batch_spec, parameter_shardings
from lm.parallel.state_bytes import state_bytes
from lm.parallel.topology import compile_for, describe, topology_mesh
from lm.resolve import resolve
from lm.train.aot import abstract_inputs, compile_step
from lm.tree import map_with_path

pytestmark = pytest.mark.aot


def config_of(topology, zero: int, **overrides: str) -> Config:
    """A model of which parameters and gradients are most; 4 micro-batches."""
    config = default()
    shape = {
        "model.num_layers": "4",
        "model.d_model": "1024",
        "model.num_heads": "8",
        "model.vocab_size": "8192",
        "model.remat": "full",
        "data.sequence_length": "256",
        "data.batch_size": str(4 * topology.num_devices),
        "optimizer.accumulation_steps": "4",
        "optimizer.clip_norm": "None",
        "precision.compute": "bfloat16",
        "parallel.data": "1",
        "parallel.fsdp": str(topology.num_devices),
        "parallel.zero": str(zero),
    }
    apply_overrides(config, list((shape | overrides).items()))
    return resolve(config, devices=topology.num_devices, capabilities=topology.capabilities)


# Between steps stage 2 holds what stage 1 does, so that one number of chips is enough for it.
@pytest.mark.parametrize(
    "zero, name",
    [(1, "v5e:2x2"), (3, "v5e:2x2"), *((zero, "v5e:4x4") for zero in (1, 2, 3)), (1, "v5e:8x8"), (3, "v5e:8x8")],
)
def test_state_takes_what_the_formula_says(name, zero):
    topology = describe(name)
    config = config_of(topology, zero)
    formula = state_bytes(config, topology.num_devices)[zero]
    compiled = compile_step(config, topology, optimize=False)
    batch = 6 * 4 * 4 * 256  # six arrays of four bytes, a row in each of four micro-batches
    assert compiled.argument_bytes - batch == pytest.approx(formula["parameters"] + formula["optimizer"], rel=0.03)


def test_offloaded_optimizer_state_rests_in_the_hosts_memory():
    topology = describe("v5e:2x2")
    config = config_of(topology, 3, **{"parallel.offload_optimizer": "True"})
    formula = state_bytes(config, topology.num_devices)[3]
    compiled = compile_step(config, topology, optimize=False)
    assert compiled.argument_bytes == pytest.approx(formula["parameters"], rel=0.03)


@functools.cache
def temporaries(zero: int) -> int:
    topology = describe("v5e:2x2")
    return compile_step(config_of(topology, zero), topology).temporary_bytes


def test_stage_2_takes_less_than_stage_1_by_the_accumulators_other_shards():
    topology = describe("v5e:2x2")
    formula = state_bytes(config_of(topology, 1), topology.num_devices)
    saved = formula[1]["gradients"] - formula[2]["gradients"]
    assert temporaries(1) - temporaries(2) == pytest.approx(saved, rel=0.1)


def test_stage_1_takes_no_more_than_accumulation_written_by_hand():
    """Local sums of whole gradients, one reduce-scatter, Adam on the shards, and a gather of what they become."""
    topology = describe("v5e:2x2")
    config = config_of(topology, 1)
    mesh = topology_mesh(topology, config.parallel)
    local = local_model(config, mesh)
    place = {"VD": 1, "LDNH": 1, "LDKH": 1, "LNHD": 3, "LDF": 1, "LFD": 2}
    adam = optax.adam(1e-3)

    def cut(path_dims, a, index):
        own = a.shape[path_dims] // mesh.size
        return jax.lax.dynamic_slice_in_dim(a, index * own, own, path_dims)

    def by_hand(params, moments, batch):
        def gradient(micro):
            loss = lambda p: local.objective(next_token, p, micro, grad_scale=1e-3, dropout_key=None)[0]  # noqa: E731
            return jax.tree.map(lambda g: g.astype(jnp.float32), jax.grad(loss)(params))

        first = gradient({key: a[0] for key, a in batch.items()})
        add = lambda total, micro: (jax.tree.map(jnp.add, total, gradient(micro)), None)  # noqa: E731
        grads, _ = jax.lax.scan(add, first, {key: a[1:] for key, a in batch.items()})
        at = dims_of(params, place)
        index = jax.lax.axis_index("fsdp")
        scatter = lambda g, d: (  # noqa: E731
            jax.lax.psum(g, "fsdp") if d < 0 else jax.lax.psum_scatter(g, "fsdp", scatter_dimension=d, tiled=True)
        )
        shards = jax.tree.map(scatter, grads, at)
        own = jax.tree.map(lambda p, d: p if d < 0 else cut(d, p, index), params, at)
        updates, moments = adam.update(shards, moments, own)
        own = optax.apply_updates(own, updates)
        whole = jax.tree.map(lambda p, d: p if d < 0 else jax.lax.all_gather(p, "fsdp", axis=d, tiled=True), own, at)
        return whole, moments

    params = jax.eval_shape(local.model.init, jax.random.key(0))
    sharded = jax.tree.map(lambda s: s.spec, parameter_shardings(mesh, params, SHARDED_AXES))
    moments = jax.eval_shape(adam.init, params)
    moment_specs = optax.tree.map_params(
        adam, lambda _, spec: spec, moments, sharded, transform_non_params=lambda _: PartitionSpec()
    )
    whole = PartitionSpec()
    step = local.zero.local(by_hand, (whole, moment_specs, batch_spec()), (whole, moment_specs))
    lay = lambda tree, specs: jax.tree.map(  # noqa: E731
        lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
    )
    batch, _ = abstract_inputs(config, mesh)
    compiled = compile_for(
        topology,
        jax.jit(step, donate_argnums=(0, 1)),
        lay(params, jax.tree.map(lambda _: whole, params)),
        lay(moments, moment_specs),
        batch,
    )
    assert temporaries(1) <= 1.02 * compiled.temporary_bytes


def dims_of(params, place: dict[str, int]):
    """Return the dimension of each parameter that is scattered, -1: none."""
    return map_with_path(lambda path, _: place.get(PARAMETERS[path], -1), params)
