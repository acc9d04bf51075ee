"""`lm plan`: what a config needs on a topology that is not here: memory, communication, time."""

import argparse
import json
import os
import re
from typing import Any

from lm.commands import common
from lm.errors import ConfigError, UsageError

HELP = "Memory, communication and predicted step time of a config on hardware that is not here."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with a get_config()")
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="v5p:4x4x4, 2*v5e:4x4 (two slices), h200:8, or here (default: the file's HARDWARE, or here)",
    )
    parser.add_argument("--no-compile", action="store_true", help="formulas only: seconds instead of minutes")
    parser.add_argument("--compare", action="store_true", help="a table over ZeRO stages and remat policies")
    parser.add_argument(
        "--search", action="store_true", help="the fastest mesh, ZeRO stage, remat policy, micro-batches"
    )
    parser.add_argument("--scaling", metavar="A-B", help="weak scaling from A to B chips, like 16-4096")
    parser.add_argument("--out", metavar="FILE", help="where --scaling draws its plot: .png or .svg")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "examples:\n"
        "  lm plan --config experiments/llama_7b.py --topology v5p:4x4x4\n"
        "  lm plan --config experiments/llama_7b.py --topology h200:8 --search --config.parallel.fsdp=8\n"
        "  lm plan --config experiments/llama_7b.py --topology v5p:4x4x4 --scaling 16-4096 --out scaling.png\n\n"
        "The real training step is compiled for the topology (extra tpu or gpu), which takes one or two minutes; pods\n"
        "beyond 512 chips are scaled from a compiled slice. Exit code 0 also where the config does not fit."
    )


def run(args: argparse.Namespace) -> None:
    if args.out is not None and not args.scaling:
        raise UsageError("--out is the plot of --scaling A-B.")
    if args.out is not None and not args.out.endswith((".png", ".svg")):
        raise UsageError(f"--out {args.out}: expected a name that ends in .png or .svg.")
    chips = _chips(args.scaling)
    config_dict = common.load_config(args.config, args.overrides)
    name = args.topology or _hardware(args.config) or "here"
    config, topology = _resolved(config_dict, name)
    if args.scaling:
        result, text = _scaling(args, config, topology, chips)
    elif args.compare:
        result, text = _compare(config, topology)
    elif args.search:
        result, text = _search(args, config, topology)
    else:
        result, text = _plan(args, config, topology)
    print(json.dumps(result) if args.json else f"{args.config} on {text}")


def _hardware(path: str) -> str | None:
    """Return what an experiment file states as its hardware."""
    with open(path) as file:
        found = re.search(r'^HARDWARE = "(.*)"$', file.read(), re.MULTILINE)
    return found and found[1]


def _resolved(config_dict, name: str):
    if name != "here":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and no device is looked for
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from lm.parallel.topology import describe

        topology = describe(name)
        return common.resolve_for(config_dict, topology), topology
    from lm.parallel.topology import here
    from lm.resolve import with_vocabulary

    config = common.resolve_here(config_dict)
    if config.model.vocab_size is None:
        config = with_vocabulary(config, common.tokenizer_vocabulary(config))
    return config, here()


def _plan(args: argparse.Namespace, config, topology) -> tuple[dict[str, Any], str]:
    from lm.plan import tables
    from lm.plan.gate import refusal
    from lm.plan.plan import as_json, make_plan
    from lm.plan.scale import COMPILED_DEVICES, scaled_plan, slice_of

    scaled = None
    if args.no_compile:
        plan = make_plan(config, topology)
    elif topology.num_devices > COMPILED_DEVICES:
        common.note(f"compiling for {slice_of(topology.name)}, a slice of {topology.name} (a minute or two)")
        scaled = scaled_plan(config, topology)
        plan = scaled.plan
    else:
        common.note(f"compiling for {topology.name} (a minute or two)")
        plan = make_plan(config, topology, compiled=True)
    result = as_json(plan)
    if scaled:
        result["scaled_from"] = {**as_json(scaled.checked), "ratio": scaled.ratio, "peak_bytes": scaled.peak}
        result["fits"] = None if plan.limit is None else scaled.peak <= plan.limit
    parts = [
        tables.heading(plan),
        tables.memory_text(plan, scaled),
        tables.communication_text(scaled.checked if scaled else plan),
        tables.time_text(plan),
    ]
    if scaled:
        parts[2] = f"  on {scaled.checked.topology.name}:\n{parts[2]}"
    if result["fits"] is False:
        result["change"] = refusal(config, topology.capabilities, scaled.peak if scaled else plan.peak)
        parts.append(result["change"])
    if plan.prediction:
        published = tables.published_text(plan)
        parts += [published] * bool(published) + ["assumptions:\n" + tables.assumptions_text()]
    return result, "\n\n".join(parts)


def _compare(config, topology) -> tuple[dict[str, Any], str]:
    from lm.plan import tables
    from lm.plan.plan import as_json
    from lm.plan.search import compare

    plans = compare(config, topology)
    limit = topology.capabilities.memory_bytes
    has = "" if limit is None else f"; {tables.gib2(limit)} GiB a device"
    text = (
        f"{topology.name}{has}. Peak by the formulas, predicted step time, whether it fits (?: only compiling can say)"
    )
    return {"plans": [as_json(plan) for plan in plans]}, f"{text}\n\n{tables.comparison_text(plans)}"


def _search(args: argparse.Namespace, config, topology) -> tuple[dict[str, Any], str]:
    from lm.plan import tables
    from lm.plan.plan import as_json, make_plan
    from lm.plan.scale import COMPILED_DEVICES
    from lm.plan.search import overrides, search

    before = make_plan(config, topology)
    if before.prediction is None:
        raise UsageError(f"--search ranks by predicted time; {topology.name} has no published figures.")
    common.note("trying meshes, ZeRO stages, remat policies and micro-batches")
    plans = search(config, topology)
    if not plans:
        raise ConfigError(
            f"nothing fits: no mesh, ZeRO stage, remat policy or number of micro-batches on {topology.name}."
        )
    verified = []
    for plan in plans[: 0 if args.no_compile or topology.num_devices > COMPILED_DEVICES else 3]:
        common.note(f"compiling {tables.heading(plan)} (a minute or two)")
        verified.append(make_plan(plan.config, topology, compiled=True))
        if verified[-1].fits:
            break
    chosen = next((plan for plan in verified if plan.fits), plans[0])
    result = {
        "best": [{**as_json(plan), "overrides": overrides(plan.config, config)} for plan in plans],
        "compiled": [as_json(plan) for plan in verified],
        "overrides": overrides(chosen.config, config),
    }
    return result, f"{topology.name}\n\n{tables.search_text(plans, before, verified)}"


def _chips(text: str | None) -> list[int]:
    """Return the powers of two in a range like 16-4096."""
    if text is None:
        return []
    ends = re.fullmatch(r"(\d+)-(\d+)", text)
    known = [2**n for n in range(4, 13)]
    chosen = [n for n in known if ends and int(ends[1]) <= n <= int(ends[2])]
    if not chosen:
        raise UsageError(f"--scaling {text}: expected a range of chips within 16-4096.")
    return chosen


def _scaling(args: argparse.Namespace, config, topology, chips: list[int]) -> tuple[dict[str, Any], str]:
    from lm.plan import tables
    from lm.plan.assumptions import STATEMENTS, efficiency
    from lm.plan.scale import weak_scaling

    family = topology.name.rpartition("*")[2].partition(":")[0]
    if topology.capabilities.platform != "tpu":
        raise UsageError(f"--scaling knows the pods of TPUs; {topology.name} is none.")
    points = weak_scaling(config, family, chips)
    rows = [
        {
            "chips": point.chips,
            "topology": point.plan.topology.name,
            "curve": point.curve,
            "tokens_per_second_per_device": point.plan.prediction.tokens_per_second_per_device,
            "communication_share": point.plan.prediction.communication_share,
            "mfu": point.plan.prediction.mfu,
            "gib": point.plan.memory.total / 2**30,
            "fits": point.plan.fits,
        }
        for point in points
    ]
    statements = [f"efficiencies: {efficiency(topology.capabilities.device_kind).source}", *STATEMENTS]
    if args.out:
        from lm.report.scaling import draw

        draw(rows, args.out, title=f"{os.path.basename(args.config)}: weak scaling on {family}", statements=statements)
    shown = [("chips", "topology", "work", "tokens/s per device", "waits for communication", "MFU", "GiB")]
    for row in rows:
        figures = (f"{row['tokens_per_second_per_device']:,.0f}", f"{row['communication_share']:.1%}")
        shown.append(
            (str(row["chips"]), row["topology"], row["curve"], *figures, f"{row['mfu']:.1%}", f"{row['gib']:.1f}")
        )
    written = f"\n\n{args.out}" if args.out else ""
    text = f"{family}: weak scaling\n\n{tables.table(shown)}\n\nassumptions:\n{tables.assumptions_text()}{written}"
    return {"points": rows, "assumptions": statements, "plot": args.out}, text
