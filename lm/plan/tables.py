"""Plans as text for people."""

from collections.abc import Sequence

from lm.plan.assumptions import STATEMENTS, efficiency
from lm.plan.collectives import summary
from lm.plan.gate import gib
from lm.plan.plan import Plan
from lm.plan.published import PUBLISHED, predict_published
from lm.plan.scale import Scaled
from lm.plan.search import overrides

_MEMORY = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "average": "moving average",
    "gradients": "gradients",
    "activations": "activations kept",
    "working": "worst moment of a layer or the loss",
    "gathered": "parameters gathered or cast",
    "host": "on the host",
}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(("", first, *rest)).rstrip())
    return "\n".join(lines)


def heading(plan: Plan) -> str:
    """Return what is planned in one line."""
    devices, kind = plan.topology.num_devices, plan.topology.capabilities.device_kind
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items() if size > 1) or "one device"
    config = plan.config
    rest = (
        f"ZeRO {config.parallel.zero}, remat {config.model.remat}, {config.optimizer.accumulation_steps} micro-batches"
    )
    return f"{plan.topology.name}: {devices} x {kind}; {axes}; {rest}"


def memory_text(plan: Plan, scaled: Scaled | None = None) -> str:
    """Return bytes per device by part, and whether they fit."""
    m, stats = plan.memory, plan.compiled
    rows = [("GiB per device", "formulas", "compiled")]
    rows += [(label, gib2(getattr(m, name)), "") for name, label in _MEMORY.items() if getattr(m, name)]
    rows.append(("between steps", gib2(m.arguments), gib2(stats.argument_bytes) if stats else ""))
    rows.append(("peak", gib2(m.total), gib2(stats.peak_bytes) if stats else ""))
    lines = [table(rows)]
    if stats:
        lines.append(f"  the formulas are {m.total / stats.peak_bytes - 1:+.0%} off the compiler's peak")
    if scaled:
        checked = scaled.checked
        lines.append(
            f"  not compiled: scaled from {checked.topology.name}, which was, with the same work per device. There the\n"
            f"  compiler's temporaries are {scaled.ratio:.2f} x the formulas'; so scaled, the peak here is "
            f"{gib2(scaled.peak)} GiB."
        )
    lines.append(f"  {verdict(plan, scaled)}")
    return "\n".join(lines)


def gib2(size: float) -> str:
    """Return bytes in GiB with two decimals."""
    return f"{size / 2**30:.2f}"


def verdict(plan: Plan, scaled: Scaled | None = None) -> str:
    """Return whether it fits, in words."""
    if plan.limit is None:
        return "the device's memory is not known"
    peak = scaled.peak if scaled else plan.peak
    fits = peak <= plan.limit if scaled else plan.fits
    says = {True: "fits", False: "DOES NOT FIT", None: "as much as there is: only compiling can say"}[fits]
    return f"{says}: {gib2(peak)} of {gib2(plan.limit)} GiB"


def communication_text(plan: Plan) -> str:
    """Return what is sent per step and device, by kind and axes: compiled where it was, and by the formulas."""
    compiled, formulas = summary(plan.collectives), {}
    for t in plan.prediction.transfers if plan.prediction else ():
        formulas[t.kind, t.axes] = formulas.get((t.kind, t.axes), 0.0) + t.sent_bytes
    rows = [("sent per step, each device", "along", "in the program", "runs", "GiB", "formulas, GiB")]
    order = sorted({*compiled, *formulas}, key=lambda k: -max(compiled.get(k, (0, 0, 0))[2], formulas.get(k, 0)))
    for key in order:
        instructions, executions, sent = compiled.get(key, ("", "", None))
        if max(sent or 0, formulas.get(key, 0)) < 2**20 and not isinstance(instructions, int):
            continue
        kind, axes = key
        found = (str(instructions), str(executions), "" if sent is None else f"{sent / 2**30:.3f}")
        rows.append((kind, ",".join(axes) or "-", *found, f"{formulas[key] / 2**30:.3f}" if key in formulas else ""))
    return table(rows) if len(rows) > 1 else "  nothing is sent"


def time_text(plan: Plan) -> str:
    """Return the predicted step time and what it is made of."""
    p = plan.prediction
    if p is None:
        return "  no published figures for this device: no prediction of its time"
    parts = {
        "compute": p.compute,
        "memory traffic": p.memory,
        "host traffic": p.host,
        "communication behind compute": p.hidden,
        "communication that is waited for": p.exposed,
        "optimizer update": p.optimizer,
    }
    made_of = ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items() if seconds >= 5e-4)
    along = ", ".join(f"{','.join(axes)} {seconds:.3g}" for axes, seconds in p.by_axes.items() if seconds >= 5e-4)
    bubble = f"; pipeline bubble {p.bubble:.1%}" if p.bubble else ""
    return (
        f"  step {p.seconds:.3g} s for {p.tokens:,} tokens, bound by {p.binding}{bubble}\n"
        f"  seconds: {made_of}" + (f"\n  communication by axes: {along}" if along else "") + "\n"
        f"  {p.tokens_per_second_per_device:,.0f} tokens/s per device, {p.communication_share:.1%} of the step waits for "
        f"communication\n"
        f"  MFU {p.mfu:.1%} of {p.peak_flops / 1e12:.0f} TFLOP/s (forward and backward, causal attention at half); "
        f"{p.mfu_full_attention:.1%} with attention unmasked"
    )


def published_text(plan: Plan) -> str:
    """Return published runs on the same family and what the same roofline says of them."""
    kind, family = plan.topology.capabilities.device_kind, plan.topology.name.rpartition("*")[2].partition(":")[0]
    rows = [("published runs (attention unmasked)", "on", "MFU", "predicted", "")]
    for run in PUBLISHED:
        if run.topology.partition(":")[0] != family:
            continue
        predicted = predict_published(run)[1].mfu_full_attention
        kind_of = "fitted to it" if run.is_fitted else f"held out, {predicted / run.mfu - 1:+.0%}"
        rows.append((run.name, run.topology, f"{run.mfu:.1%}", f"{predicted:.1%}", kind_of))
    share = efficiency(kind)
    fitted = (
        f"  efficiencies {share.matmul:.0%} (matmuls), {share.attention:.0%} (attention): {share.source}"
        if share
        else ""
    )
    return "\n".join(part for part in (table(rows) if len(rows) > 1 else "", fitted) if part)


def assumptions_text() -> str:
    """Return what the prediction assumes, a line each."""
    return "\n".join(f"  - {statement}" for statement in STATEMENTS)


def comparison_text(plans: Sequence[Plan]) -> str:
    """Return ZeRO stages x remat policies: peak by the formulas, step time and whether it fits."""
    rows = [("remat policy", *(f"ZeRO {zero}" for zero in range(4)))]
    by_key = {(plan.config.model.remat, plan.config.parallel.zero): plan for plan in plans}
    for remat in dict.fromkeys(plan.config.model.remat for plan in plans):
        rows.append((remat, *(_cell(by_key[remat, zero]) for zero in range(4))))
    return table(rows)


def _cell(plan: Plan) -> str:
    fits = {True: "fits", False: "no", None: "?"}[plan.fits]
    seconds = f" {plan.prediction.seconds:.3g} s" if plan.prediction else ""
    return f"{plan.memory.total / 2**30:.1f} GiB{seconds} {fits}"


def search_text(plans: Sequence[Plan], before: Plan, verified: Sequence[Plan]) -> str:
    """Return the best ways to run a config, the fastest first, and those that were compiled."""
    rows = [("predicted, the fastest first", "step", "MFU", "GiB", "binds")]
    for number, plan in enumerate((*plans, before)):
        p = plan.prediction
        name = f"{number + 1}. {heading(plan).partition('; ')[2]}" if plan is not before else "as given"
        rows.append((name, f"{p.seconds:.3g} s", f"{p.mfu:.1%}", gib(plan.memory.total), p.binding))
    lines = [table(rows)]
    for plan in verified:
        lines.append(f"compiled: {heading(plan).partition('; ')[2]}\n  {verdict(plan)}")
    chosen = next((plan for plan in verified if plan.fits), plans[0])
    lines.append("to use it:\n  " + (" ".join(overrides(chosen.config, before.config)) or "(the config as it is)"))
    return "\n".join(lines)
