"""Static schedules of the TPU attention kernels beside JAX's splash attention: no TPU is needed, nothing runs.

    python -m experiments.benchmarks.tpu_schedule                          # v5e and v6e (needs the extra tpu)
    python -m experiments.benchmarks.tpu_schedule --chips v5p --blocks 512 # another chip, other blocks
    python -m experiments.benchmarks.tpu_schedule --ours                   # one JSON object per kernel of ours

libtpu writes the VLIW bundles that it schedules for a kernel (one bundle a cycle, stalls aside) and which units each
uses. B 1, T 4,096, H 128, bf16, one head, every query sees every key, so that only the body without a mask exists;
splash has a full mask too. "bundles" are those of the whole program: one grid step with what opens and closes a block
of queries and with the pipeline's copies, each loop's body once. "body" is the longest run of bundles without a
branch, which is the step's computation alone. "bound" is ideal / bundles: the cycles that the products take at the
peak of the matrix units (2 products forward, 5 backward), over the bundles. Splash's backward pass is its fused one.

The peak is taken as 4 x 128 x 128 (v5e) and 2 x 256 x 256 (v6e) products a cycle, so bodies of the backward pass can
lie below that ideal: bundles are for comparison, not for prediction, and times need a TPU. "ratio" is splash's bundles
over ours.

Measured with jax 0.10.2 and libtpu 0.0.42.1:

    chip pass     block         bundles   body  bound  fills spills
    v5e  forward    512 ours       1603   1069  63.9%    335    300
    v5e  forward    512 splash     2027   1157  50.5%    543    542
                        ratio      1.26   1.08
    v5e  forward   1024 ours       5091   4285  80.5%   1430   1378
    v5e  forward   1024 splash     6325   4844  64.8%   2881   2881
                        ratio      1.24   1.13
    v5e  backward   512 ours       2863   2264  89.4%    594    539
    v5e  backward   512 splash     2930   2403  87.4%    703    695
                        ratio      1.02   1.06
    v5e  backward  1024 ours      10116   9288 101.2%   2585   2357
    v5e  backward  1024 splash    10119   9011 101.2%   3638   3537
                        ratio      1.00   0.97
    v6e  forward    512 ours       1263    807  40.5%    451    397
    v6e  forward    512 splash     1408    860  36.4%    458    457
                        ratio      1.11   1.07
    v6e  forward   1024 ours       2989   2316  68.5%   2244   1889
    v6e  forward   1024 splash     3752   2942  54.6%   4018   3122
                        ratio      1.26   1.27
    v6e  backward   512 ours       1859   1318  68.9%    576    496
    v6e  backward   512 splash     1801   1429  71.1%    484    484
                        ratio      0.97   1.08
    v6e  backward  1024 ours       5514   4802  92.9%   2458   1934
    v6e  backward  1024 splash     6073   5389  84.3%   4184   4027
                        ratio      1.10   1.12
"""

import argparse
import dataclasses
import glob
import json
import os
import re
import tempfile

# Topology, and products of the matrix units in a cycle.
CHIPS = {"v5e": ("v5e:1x1", 4 * 128 * 128), "v5p": ("v5p:2x2x1", 4 * 128 * 128), "v6e": ("v6e:1x1", 2 * 256 * 256)}
T, H = 4096, 128
SPLASH_COMPUTE = 512  # keys at a time


def ours(device_kind: str, block: int, is_backward: bool):
    """Return our pass as a function, and the shapes of its arguments."""
    import jax.numpy as jnp

    from lm.kernels.flash_attention import tpu
    from lm.kernels.flash_attention.options import Options

    options, sizes = Options(False, None, None, H**-0.5), tpu.sizes_for(device_kind, 2 * H, is_backward=is_backward)
    sizes = dataclasses.replace(sizes, block_q=block, block_k=block)
    heads, rows = ((1, T, 1, H), jnp.bfloat16), ((1, 1, T), jnp.float32)
    if not is_backward:
        return lambda q, k, v: tpu.forward(q, k, v, None, None, 0, options, sizes), [heads] * 3

    def backward(q, k, v, lse, dout, delta):
        return tpu.backward(q, k, v, None, None, 0, lse, dout, delta, options, sizes)

    return backward, [*[heads] * 3, rows, heads, rows]


def splash(device_kind: str, block: int, is_backward: bool):
    """Return JAX's pass; its backward pass comes with the forward pass."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    del device_kind  # one set of sizes
    compute = min(block, SPLASH_COMPUTE)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.FullMask((T, T))])
    attend = kernel.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    if is_backward:
        gradients = jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))
        return gradients, [((1, T, H), jnp.bfloat16)] * 3
    return attend, [((1, T, H), jnp.bfloat16)] * 3


def measure(dump: str, chip: str, make, block: int, is_backward: bool) -> dict:
    """Compile a pass and return the counts of its program.

    Args:
      dump: the folder that libtpu writes to.
      make: `ours` or `splash`.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from lm.parallel.topology import describe

    for path in glob.glob(f"{dump}/*"):
        os.remove(path)
    topology, products = CHIPS[chip]
    device = describe(topology).devices[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    function, shapes = make(device.device_kind, block, is_backward)
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
    jax.jit(function, out_shardings=sharding).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    of_pass = r"flash_backward|dkv" if is_backward else r"flash_forward|splash_m[hq]a_fwd"
    (use,) = (path for path in _dumped(dump, "final_hlo-static-per-bundle-utilization") if re.search(of_pass, path))
    (program,) = (path for path in _dumped(dump, "final_bundles") if re.search(of_pass, path))
    with open(use) as file:
        head, rows = file.read().split("== UTILIZATION:")
    units = [unit.strip() for unit in head.splitlines()[1].split(",")]
    table = [list(map(int, row.split())) for row in rows.splitlines() if row.strip()]
    totals = dict(zip(units, map(sum, zip(*table, strict=True)), strict=True))
    with open(program) as file:
        body = longest_run(file)
    ideal = (5 if is_backward else 2) * block * block * H / products
    return {
        "chip": chip,
        "pass": "backward" if is_backward else "forward",
        "block": block,
        "bundles": len(table),
        "body": body,
        "bound": ideal / len(table),
        "fills": totals["VLOAD:FILL"],
        "spills": totals["VSTORE:SPILL"],
    }


def _dumped(dump: str, kind: str) -> list[str]:
    """Return the files of one kind, those of the program's last form."""
    return [path for path in glob.glob(f"{dump}/*-{kind}.txt") if "late-" not in path and "TLP" not in path]


def longest_run(lines) -> int:
    """Return the most bundles that follow each other without a branch or a place that one leads to."""
    run = longest = 0
    for line in lines:
        bundle = re.match(r"\s*(?:\d+|0x[0-9a-f]+)?\s*(?:0x[0-9a-f]+)?\s*([A-Z]{2})?\s*:[\s>]*\{", line)
        if bundle is None:
            continue
        run = 1 if bundle.group(1) else run + 1
        longest = max(longest, run)
        if "sbr.rel" in line:
            run = 0
    return longest


def show(rows: list[tuple[dict, dict]]) -> None:
    """Print pairs of ours and splash's, and how many times ours splash's bundles are."""
    print(
        f"{'chip pass     block':19s} {'':6s} {'bundles':>8s} {'body':>6s} {'bound':>6s} {'fills':>6s} {'spills':>6s}"
    )
    for own, peer in rows:
        for name, row in (("ours", own), ("splash", peer)):
            counts = f"{row['bundles']:8d} {row['body']:6d} {row['bound']:6.1%} {row['fills']:6d} {row['spills']:6d}"
            print(f"{row['chip']:4s} {row['pass']:8s} {row['block']:5d} {name:6s} {counts}")
        bundles, body = peer["bundles"] / own["bundles"], peer["body"] / own["body"]
        print(f"{'':19s} {'ratio':6s} {bundles:8.2f} {body:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=["v5e", "v6e"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[512, 1024], help="queries and keys of a grid step")
    parser.add_argument("--ours", action="store_true", help="without splash attention, as JSON")
    parser.add_argument("--json", action="store_true", help="one JSON object per kernel")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as dump:
        # Read once, when libtpu loads.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        rows = []
        for chip in args.chips:
            for is_backward in (False, True):
                for block in args.blocks:
                    makers = (ours,) if args.ours else (ours, splash)
                    pair = [measure(dump, chip, make, block, is_backward) for make in makers]
                    rows.append(pair)
                    if args.json or args.ours:
                        for maker, row in zip(makers, pair, strict=True):
                            print(json.dumps({"kernel": maker.__name__, **row}), flush=True)
    if not args.json and not args.ours:
        show(rows)


if __name__ == "__main__":
    main()
