"""Remat policies: memory and time of a 12-layer model's training step, by policy, beside first principles.

    python -m experiments.benchmarks.remat                        # this machine: temporaries and step time
    python -m experiments.benchmarks.remat --topology v5e:1x1     # compiled for a TPU: temporaries (needs the extra tpu)
    python -m experiments.benchmarks.remat --topology v5e:1x1 --window-pattern   # layers in groups of six

Shapes. Here: D 256, N 4, T 256, B 8, V 4,096 in f32, so that a step takes a second. On the TPU: GPT-2 small's
(D 768, N 12, T 1,024), B 8, V 8,192 (a small loss beside the layers), in bf16. Both: 12 layers, GELU with F = 4 D,
AdamW; attention block by block here, by the Pallas kernels on the TPU.

"Temporaries" are what is alive at one time beside the arguments (parameters, optimizer state, batch), less the
f32 gradients of all parameters. "First principles" is `lm.model.memory.activation_bytes`. Times are medians of
rounds in which each policy runs once.

Measured with jax 0.10.2 and libtpu 0.0.42.1, in MiB (two CPU cores):

                                     v5e:1x1     first    none /     CPU     first   none /   time
                                              principles   this          principles   this  / none
    none                                2808      2615     1.00      432       432    1.00    1.00
    dots                                1746      1614     1.61      266       264    1.63    1.17
    query,key,value,attention_out       1176      1090     2.39      185       168    2.34    1.11
    attention_out,mlp_hidden            1352      1222     2.08      201       192    2.15    1.05
    attention_out                        716       694     3.92      113        96    3.82    1.16
    full                                 546       558     5.15       89        72    4.88    1.22
    offload:block_input                  402       426     6.99 and 144 on the host
    offload:block_input,attention_out,mlp_hidden
                                         520       426     5.40 and 868 on the host
"""

import argparse
import json
import math
import os
import statistics
import time

POLICIES = (
    "none",
    "dots",
    "query,key,value,attention_out",
    "attention_out,mlp_hidden",
    "attention_out",
    "full",
    "offload:block_input",
    "offload:block_input,attention_out,mlp_hidden",
)
SHAPES = {
    "cpu": {"d_model": 256, "num_heads": 4, "vocab_size": 4096, "T": 256, "compute": "float32"},
    "aot": {"d_model": 768, "num_heads": 12, "vocab_size": 8192, "T": 1024, "compute": "bfloat16"},
}
BATCH = 8


def config_of(where: str, policy: str, capabilities, **model):
    """Return the resolved config of one row."""
    from lm.config import default
    from lm.resolve import resolve

    shape, config = SHAPES[where], default()
    config.model.num_layers = 12
    for name in ("d_model", "num_heads", "vocab_size"):
        config.model[name] = shape[name]
    config.model.activation = "gelu"
    config.model.remat = policy
    for name, value in model.items():
        config.model[name] = value
    config.data.sequence_length, config.data.batch_size = shape["T"], BATCH
    config.precision.compute = shape["compute"]
    return resolve(config, capabilities=capabilities)


def first_principles(config) -> int:
    """Return the activation bytes of a config's step on one device."""
    from lm.model.memory import activation_bytes

    size = 2 if config.precision.compute == "bfloat16" else 4
    rows = config.data.batch_size // config.optimizer.accumulation_steps
    shape = {"batch": rows, "length": config.data.sequence_length}
    return activation_bytes(config.model, config.model.remat, **shape, itemsize=size).total


def gradient_bytes(config) -> int:
    """Return the bytes of f32 gradients of all parameters."""
    from lm.model.flops import parameter_counts

    return 4 * parameter_counts(config.model)["total"]


def on_topology(name: str, policies, **model) -> list[dict]:
    """Compile a step per policy for a topology of one device."""
    from lm.parallel.topology import describe
    from lm.train.aot import compile_step

    topology, rows = describe(name), []
    for policy in policies:
        config = config_of("aot", policy, topology.capabilities, **model)
        stats = compile_step(config, topology)
        row = {"policy": policy, "temporaries": stats.temporary_bytes - gradient_bytes(config)}
        row |= {"host": stats.host_bytes, "first_principles": first_principles(config), "seconds": stats.seconds}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def on_this_machine(policies, rounds: int) -> list[dict]:
    """Compile a step per policy here, then run them in turn."""
    import jax
    import numpy as np

    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh, replicated
    from lm.train.aot import abstract_inputs
    from lm.train.step import build_step, step_scalars

    rows, steps = [], {}
    for policy in policies:
        config = config_of("cpu", policy, detect())
        built = build_step(config, make_mesh(config.parallel, jax.devices()[:1]))
        batch, hparams = abstract_inputs(config, built.mesh)
        compiled = built.step.lower(built.state, batch, hparams).compile()
        temporaries = compiled.memory_analysis().temp_size_in_bytes - gradient_bytes(config)
        rows.append({"policy": policy, "temporaries": temporaries, "first_principles": first_principles(config)})
        random = np.random.default_rng(0)
        ones = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
        tokens = random.integers(0, config.model.vocab_size, (2, *batch["inputs_BT"].shape), np.int32)
        ones["inputs_BT"], ones["targets_BT"] = tokens
        ones["positions_BT"] = np.broadcast_to(np.arange(SHAPES["cpu"]["T"], dtype=np.int32), tokens[0].shape)
        inputs = jax.device_put((ones, step_scalars(config, 100)), replicated(built.mesh))
        steps[policy] = (compiled, built.init(), inputs)
    times: dict[str, list[float]] = {policy: [] for policy in policies}
    for _ in range(rounds):
        for policy, (compiled, state, inputs) in steps.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, *inputs))
            times[policy].append(time.perf_counter() - start)
            steps[policy] = (compiled, state, inputs)
    for row in rows:
        row["seconds"] = statistics.median(times[row["policy"]])
        row["ratios"] = statistics.median(
            own / none for own, none in zip(times[row["policy"]], times["none"], strict=True)
        )
    return rows


def show(rows: list[dict]) -> None:
    """Print the table, memory and time as ratios to `none`."""
    none = rows[0]
    print(
        f"{'policy':46s} {'temporaries':>11s} {'none/':>6s} {'principles':>10s} {'ratio':>6s} {'host':>6s} {'time':>6s}"
    )
    for row in rows:
        mib = lambda name, row=row: f"{row.get(name, math.nan) / 2**20:.0f}"  # noqa: E731
        time_ratio = f"{row['ratios']:.2f}" if "ratios" in row else ""
        print(
            f"{row['policy']:46s} {mib('temporaries'):>11s} {none['temporaries'] / row['temporaries']:6.2f} "
            f"{mib('first_principles'):>10s} {row['temporaries'] / row['first_principles']:6.2f} "
            f"{mib('host') if 'host' in row else '':>6s} {time_ratio:>6s}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="compile for it, like v5e:1x1; default: run on this machine")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="the first is what ratios are taken to")
    parser.add_argument("--window-pattern", action="store_true", help="windows (128, 128, 128, 128, 128, None)")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        model = {"window": (128, 128, 128, 128, 128, None)} if args.window_pattern else {}
        rows = on_topology(args.topology, args.policies, **model)
    else:
        from lm.commands.startup import setup_jax

        setup_jax()
        rows = on_this_machine([policy for policy in args.policies if "offload" not in policy], args.rounds)
    show(rows)


if __name__ == "__main__":
    main()
