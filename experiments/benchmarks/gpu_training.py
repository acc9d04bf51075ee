"""Training speed on one NVIDIA GPU: measured beside what `lm plan` predicts, and beside nanoGPT.

    python -m experiments.benchmarks.gpu_training --nanogpt path/to/nanoGPT --torch-python path/to/python-with-torch
    python -m experiments.benchmarks.gpu_training --predict h200:1      # no GPU: predicted, and compiled for one
    python -m experiments.benchmarks.gpu_training --smoke               # the same code, a tiny model on the CPU

The models are `experiments/gpt2_124m.py` and `experiments/llama_1b.py` (1.2 billion parameters, rows of 2,048 tokens),
in bf16 with f32 master weights, with batches for one GPU and without a document mask, so that attention is cuDNN's.
They keep all activations: of what `lm plan --search` knows, that is the fastest, and it fits an H100.

Our step is the training loop's. Step time is the median over turns of whole steps, after warming up; tokens/s and MFU
(forward and backward, nothing recomputed, causal attention at half; `lm/model/flops.py`) come from it. Peak memory is
what the allocator saw in use, beside the compiler's word for the same program and the formulas'. Ratios are measured
over predicted.

At 124M the same GPT-2 in PyTorch takes turns with ours, each in a process of its own: nanoGPT's `model.py` with
`--nanogpt`, else one of our own writing. It is compiled, in bf16 by autocast, with flash attention through SDPA, fused
AdamW and clipping, on the same rows; its loss is fetched once a turn. Without a torch that sees the GPU this is left
out. Prints tables in Markdown, then one JSON object. `--config.a.b=v` changes our configs.

Not yet run on hardware. Predicted (`--predict`, jax 0.10.2; compiled with the blockwise attention, see `predict`):

                                                                          peak GiB
                       tokens a step   step, ms   tokens/s    MFU   formulas  compiled
    h200:1  124M              32,768       56.5    579,792   46.8 %     11.4      12.1
    h200:1  1.2B              16,384      267.1     61,331   46.4 %     36.3      37.3
    h100:1  124M              32,768       56.9    575,797   46.5 %     11.4      12.1
    h100:1  1.2B              16,384      270.9     60,490   45.7 %     36.3      37.3

No prediction for these GPUs can exceed 49 %: what `lm/plan/assumptions.py` takes their matmuls to reach.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import Any

from experiments.benchmarks.training_sides import OPTIMIZER, Ours, Torch
from experiments.benchmarks.turns import Side, serve, take_turns

EXPERIMENTS = pathlib.Path(__file__).parent.parent
ONE_DEVICE = {"parallel.data": "1", "parallel.fsdp": "1", "optimizer.accumulation_steps": "1"}
SHARED_MEMORY = "0.45"  # of the GPU for JAX, which takes it at once, where PyTorch needs the rest


@dataclasses.dataclass(frozen=True)
class Case:
    """One model."""

    experiment: str
    overrides: dict[str, str]
    has_peer: bool = False  # GPT-2, which the PyTorch side can be too

    def pairs(self, overrides: list[str]) -> list[tuple[str, str]]:
        """Return all overrides, the command line's last."""
        own = ONE_DEVICE | {"data.document_mask": "False", "model.remat": "none"} | OPTIMIZER | self.overrides
        return [*own.items(), *(tuple(text.removeprefix("--config.").split("=", 1)) for text in overrides)]

    def config_dict(self, overrides: list[str]):
        from lm.commands.common import load_config

        return load_config(str(EXPERIMENTS / self.experiment), self.pairs(overrides))


CASES = {
    "GPT-2 124M": Case("gpt2_124m.py", {"data.batch_size": "32"}, has_peer=True),
    "Llama 1.2B": Case("llama_1b.py", {"data.batch_size": "8"}),
}
TINY = {"model.num_layers": "2", "model.d_model": "64", "model.vocab_size": "128", "data.batch_size": "4"}
TINY |= {"model.num_heads": "2", "model.num_kv_heads": "2", "model.d_ff": "256"}
TINY |= {"data.sequence_length": "32", "model.max_positions": "32"}
SMOKE = {
    "GPT-2 tiny": Case("gpt2_124m.py", TINY, has_peer=True),
    "Llama tiny": Case("llama_1b.py", TINY),
}


def resolve_one(case: Case, overrides: list[str]):
    """Return a case's config for this machine's device, with its vocabulary."""
    from lm.commands.common import resolve_here, tokenizer_vocabulary
    from lm.resolve import with_vocabulary

    config = resolve_here(case.config_dict(overrides))
    return config if config.model.vocab_size else with_vocabulary(config, tokenizer_vocabulary(config))


class Planned(Ours):
    """Our side, which tells beside the model what is predicted of it, and what its compiler says."""

    def __init__(self, case: Case, overrides: list[str]):
        config = resolve_one(case, overrides)
        from lm.model.flops import train_flops_per_token
        from lm.parallel.topology import here
        from lm.plan.plan import as_json, make_plan

        plan = make_plan(config, here(), compiled=True)
        super().__init__(config)
        model, data, peak = config.model, config.data, plan.topology.capabilities.peak_flops(config.precision.compute)
        shape = {"L": model.num_layers, "D": model.d_model, "N": model.num_heads}
        shape |= {"T": data.sequence_length, "B": data.batch_size, "V": model.vocab_size}
        self.about |= {"shape": shape, "attention": model.attention, "plan": as_json(plan), "peak_flops": peak}
        self.about["flops_per_token"] = train_flops_per_token(model, data.sequence_length)


def work(side: str, args: argparse.Namespace, overrides: list[str]) -> None:
    """Be one side."""
    if side == "ours":
        from lm.errors import LmError

        case = (SMOKE if args.smoke else CASES)[args.case[0]]
        try:
            serve(lambda: Planned(case, overrides))
        except LmError as error:
            sys.exit(f"gpu_training: {error}")
    else:
        device = "cpu" if args.smoke else "cuda"
        serve(lambda: Torch(json.loads(args.shape), device=device, mixed=True, nanogpt=args.nanogpt))


def environment(smoke: bool, is_shared: bool) -> dict[str, str]:
    """Return what the workers' environment has beside ours: one device, and its memory shared or not."""
    if smoke:
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {"CUDA_VISIBLE_DEVICES": first} | ({"XLA_PYTHON_CLIENT_MEM_FRACTION": SHARED_MEMORY} if is_shared else {})


def compare(name: str, case: Case, args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Measure a model, and its peer where it has one."""
    has_peer = case.has_peer and args.has_torch
    options = {"environment": environment(args.smoke, has_peer)}
    flags = ["--smoke"] if args.smoke else []
    command = [os.path.abspath(__file__), "--worker"]
    sides = {
        "ours": Side("gpu_training", [sys.executable, *command, "ours", "--case", name, *flags, *overrides], **options)
    }
    try:
        ours = sides["ours"].about
        if has_peer:
            flags += ["--nanogpt", args.nanogpt] if args.nanogpt else []
            shape = ["--shape", json.dumps(ours["shape"])]
            sides["peer"] = Side("gpu_training", [args.torch_python, *command, "peer", *shape, *flags], **options)
            check_same(name, sides, ours["shape"])
        turns = take_turns(sides, rounds=args.rounds, seconds=args.seconds)
    finally:
        for side in sides.values():
            side.close()
    result = measured(ours, turns["ours"])
    if has_peer:
        tokens = ours["shape"]["B"] * ours["shape"]["T"]
        rates = {side: [tokens / turn["seconds"] for turn in own] for side, own in turns.items()}
        ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates["peer"], strict=True)]
        about = {"name": "nanoGPT" if args.nanogpt else "PyTorch", "version": sides["peer"].about["version"]}
        about |= {"tokens_per_second": statistics.median(rates["peer"]), "peak_bytes": turns["peer"][-1]["peak_bytes"]}
        result["peer"] = about | {"ratio": statistics.median(ratios), "rounds": {**rates, "ratio": ratios}}
    return {"model": name, "experiment": case.experiment, **result}


def check_same(name: str, sides: dict[str, Side], shape: dict[str, int]) -> None:
    """End where the sides are not the same model before its first step."""
    counts = {side: process.about["parameters"] for side, process in sides.items()}
    if len(set(counts.values())) > 1:
        sys.exit(f"gpu_training: {name}: not the same model: {counts} parameters.")
    # A tied head of standard deviation 0.02 after a norm gives logits of variance 0.02² D, half of which is added.
    expected = math.log(shape["V"]) + 0.02**2 * shape["D"] / 2
    for side, process in sides.items():
        if abs(process.about["first_loss"] - expected) > 0.15:
            sys.exit(f"gpu_training: {name}: {side}'s first loss {process.about['first_loss']:.3f} is not ln V.")


def measured(ours: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured beside what was predicted; what is not known is None."""
    plan, tokens = ours["plan"], ours["shape"]["B"] * ours["shape"]["T"]
    seconds, peak = statistics.median(turn["seconds"] for turn in turns), turns[-1]["peak_bytes"]
    predicted = plan.get("prediction") or {}
    result: dict[str, Any] = {
        "parameters": ours["parameters"],
        "shape": ours["shape"],
        "attention": ours["attention"],
        "remat": plan["remat"],
        "first_loss": ours["first_loss"],
        "predicted": {"step_seconds": predicted.get("step_seconds"), "mfu": predicted.get("mfu")},
        "peak_bytes": {
            "in_use": peak,
            "compiled": plan["compiled"]["peak_bytes"],
            "formulas": plan["bytes_per_device"]["total"],
        },
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": ours["peak_flops"] and ours["flops_per_token"] * tokens / seconds / ours["peak_flops"],
        "rounds": [turn["seconds"] for turn in turns],
        "peer": None,
    }
    result["ratio"] = {
        "step_seconds": _over(seconds, result["predicted"]["step_seconds"]),
        "peak_of_compiled": _over(peak, result["peak_bytes"]["compiled"]),
        "peak_of_formulas": _over(peak, result["peak_bytes"]["formulas"]),
    }
    return result


def _over(measured: float | None, predicted: float | None) -> float | None:
    return measured / predicted if measured is not None and predicted else None


HEADER = (
    "| model | tokens a step | attention | step, ms: measured | predicted | ratio | tokens/s | MFU | predicted | "
    "peak GiB: in use | compiled | formulas |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)
PEER_HEADER = "| model | beside | ours, tokens/s | theirs, tokens/s | ours/theirs | peak GiB: ours | theirs |\n|---|---|---|---|---|---|---|"


def shown(value: float | None, form: str, scale: float = 1.0) -> str:
    """Return a number for a table, or "-" where it is not known."""
    return "-" if value is None else f"{value * scale:{form}}"


def table_row(result: dict[str, Any]) -> str:
    """Return a result as a row under `HEADER`."""
    shape, predicted, peak = result["shape"], result["predicted"], result["peak_bytes"]
    cells = [result["model"], f"{shape['B'] * shape['T']:,}", result["attention"]]
    cells += [shown(result["step_seconds"], ".1f", 1e3), shown(predicted["step_seconds"], ".1f", 1e3)]
    cells += [shown(result["ratio"]["step_seconds"], ".2f"), shown(result["tokens_per_second"], ",.0f")]
    cells += [shown(result["mfu"], ".1%"), shown(predicted["mfu"], ".1%")]
    cells += [shown(peak[name], ".2f", 2**-30) for name in ("in_use", "compiled", "formulas")]
    return f"| {' | '.join(cells)} |"


def peer_row(result: dict[str, Any]) -> str:
    """Return a result as a row under `PEER_HEADER`: medians, and in brackets the least and the most of the rounds."""
    peer = result["peer"]

    def spread(name: str, form: str) -> str:
        values = peer["rounds"][name]
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    cells = [result["model"], f"{peer['name']}, {peer['version']}", spread("ours", ",.0f"), spread("peer", ",.0f")]
    cells += [f"**{spread('ratio', '.2f')}**", shown(result["peak_bytes"]["in_use"], ".2f", 2**-30)]
    return f"| {' | '.join(cells)} | {shown(peer['peak_bytes'], '.2f', 2**-30)} |"


def predict(name: str, chosen: dict[str, Case], overrides: list[str], compiled: bool = True) -> list[dict[str, Any]]:
    """Return what is predicted for hardware that is not here, and what its compiler says.

    The prediction is for cuDNN's attention, which the GPU will have. JAX asks the cuDNN of the machine that compiles,
    so the program that is compiled here has the blockwise attention in its place.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from lm.capabilities import ATTENTION
    from lm.commands.common import resolve_for
    from lm.parallel.topology import describe
    from lm.plan.plan import as_json, make_plan

    without = describe(name)
    there = dataclasses.replace(without.capabilities, attention=ATTENTION)
    topology, results = dataclasses.replace(without, capabilities=there), []
    for model, case in chosen.items():
        plan = make_plan(resolve_for(case.config_dict(overrides), topology), topology)
        result = {"model": model, "attention": plan.config.model.attention, **as_json(plan)}
        if compiled:
            real = make_plan(resolve_for(case.config_dict(overrides), without), without, compiled=True)
            result |= {"fits": real.fits, "compiled_attention": real.config.model.attention}
            result["compiled"] = as_json(real)["compiled"]
        results.append(result)
    return results


PREDICTED_HEADER = (
    "| model | tokens a step | attention | step, ms | tokens/s | MFU | peak GiB: formulas | compiled | with | fits |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def predicted_row(result: dict[str, Any]) -> str:
    """Return a prediction as a row under `PREDICTED_HEADER`."""
    p = result["prediction"]
    cells = [result["model"], f"{p['tokens_per_step']:,}", result["attention"], f"{1e3 * p['step_seconds']:.1f}"]
    cells += [f"{p['tokens_per_second_per_device']:,.0f}", f"{p['mfu']:.1%}"]
    cells += [shown(result["bytes_per_device"]["total"], ".2f", 2**-30)]
    cells += [shown(result["compiled"]["peak_bytes"], ".2f", 2**-30), result["compiled_attention"], str(result["fits"])]
    return f"| {' | '.join(cells)} |"


def device(smoke: bool) -> tuple[str, str]:
    """Return platform and kind of the device, found by another process: one that asks a GPU takes its memory."""
    code = "from lm.parallel.devices import detect; here = detect(); print(here.platform, here.device_kind)"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **environment(smoke, False)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    platform, _, kind = (done.stdout.splitlines() or ["none"])[-1].partition(" ")
    return platform, kind


def has_torch(python: str, smoke: bool) -> bool:
    """Whether an interpreter has a torch that sees the device."""
    code = "import torch" if smoke else "import torch; torch.empty(1, device='cuda')"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and numpy")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, about")
    parser.add_argument("--case", action="append", help=f"one of {', '.join(CASES)} (default: all)")
    parser.add_argument("--predict", metavar="TOPOLOGY", help="only predict and compile, for h200:1 or h100:1")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: that everything runs")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if wrong := [text for text in overrides if not text.startswith("--config.") or "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if args.worker:
        work(args.worker, args, overrides)
        return
    known = SMOKE if args.smoke else CASES
    if wrong := [name for name in args.case or () if name not in known]:
        parser.error(f"--case {wrong[0]}: expected one of {', '.join(known)}")
    chosen = {name: known[name] for name in args.case or known}
    if args.predict:
        from lm.errors import LmError

        try:
            results = predict(args.predict, chosen, overrides)
        except LmError as error:
            parser.exit(2, f"gpu_training: {error}\n")
        print("\n".join([PREDICTED_HEADER, *map(predicted_row, results), ""]))
        print(json.dumps({"predicted": results, "overrides": overrides}))
        return
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be greater than 0")
    if args.nanogpt and not os.path.isfile(os.path.join(args.nanogpt, "model.py")):
        parser.error(f"--nanogpt {args.nanogpt}: there is no model.py in it")
    if shutil.which(args.torch_python) is None:
        parser.error(f"--torch-python: there is no program {args.torch_python}")
    platform, kind = device(args.smoke)
    if platform != ("cpu" if args.smoke else "gpu"):
        parser.exit(2, "gpu_training: JAX finds no GPU here; --predict h200:1 and --smoke need none.\n")
    args.has_torch = has_torch(args.torch_python, args.smoke)
    if args.nanogpt and not args.has_torch:
        parser.exit(2, f"gpu_training: {args.torch_python} has no torch that sees the device; see --torch-python.\n")
    results = []
    print(f"On {kind}; medians of {args.rounds} turns of {args.seconds:g} s.\n\n{HEADER}", flush=True)
    for name, case in chosen.items():
        results.append(compare(name, case, args, overrides))
        print(table_row(results[-1]), flush=True)
    if beside := [result for result in results if result["peer"]]:
        print("\n".join(["", PEER_HEADER, *map(peer_row, beside)]))
    print()
    print(json.dumps({"device": kind, "results": results, "overrides": overrides}))


if __name__ == "__main__":
    main()
