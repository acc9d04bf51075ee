"""What a sweep says, in sentences: which variants are better or worse, by how much, how sure, and what that rests on."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from lm.sweep.results import Sweep
from lm.sweep.statistics import LEVEL, POWER, Difference, Judgement, judge

MOST_SENTENCES = 6  # of one kind; more variants are only named
CONFIDENCE = f"{100 * (1 - LEVEL):.0f} %"

Kind = Literal["lead", "better", "worse", "neither", "remark"]


def judge_sweep(sweep: Sweep) -> Judgement:
    """Hold a sweep's variants against its baseline by the metric that it names."""
    return judge(sweep.values(), sweep.baseline)


def unit_of(sweep: Sweep) -> str:
    return sweep.metric.replace("_", " ")


def percent(value: float, sign: bool = False) -> str:
    """Return `1.3 %`; two digits, no more than are there."""
    if not math.isfinite(value):
        return "-"
    decimals = min(3, max(0, 1 - math.floor(math.log10(abs(value))))) if value else 0
    text = f"{abs(value):.{decimals}f}"
    return ("" if not float(text) else "-" if value < 0 else "+" if sign else "") + text + " %"


def p_text(p: float) -> str:
    """Return `p = 0.004`, `p < 0.001`."""
    return "p " + ("< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}")


class Digits:
    """Writes values of the metric with as many decimals as the noise leaves meaningful."""

    def __init__(self, judgement: Judgement):
        widths = [(d.high - d.low) / 2 for d in judgement.differences if 0 < d.high - d.low < math.inf]
        size = statistics.median(widths) if widths else 1e-3
        self.decimals = min(8, max(2, 1 - math.floor(math.log10(size))))

    def value(self, number: float) -> str:
        return f"{number:.{max(4, self.decimals)}f}" if math.isfinite(number) else "-"

    def difference(self, number: float, sign: bool = False) -> str:
        if not math.isfinite(number):
            return "-"
        text = f"{abs(number):.{self.decimals}f}"
        is_zero = not float(text)
        return ("" if is_zero else "-" if number < 0 else "+" if sign else "") + text

    def interval(self, low: float, high: float) -> str:
        return f"{self.difference(low)} to {self.difference(high)}" if math.isfinite(low) else "-"


def counted(number: int, noun: str) -> str:
    """Return `1 seed`, `3 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def named(names: Sequence[str], most: int = 8) -> str:
    """Return `a, b and c`, or the first of many and how many more."""
    comma = "; " if any("," in name for name in names) else ", "
    if len(names) > most:
        return f"{comma.join(names[:most])} and {len(names) - most} more"
    return " and ".join([comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)


def verdict_lines(sweep: Sweep, judgement: Judgement) -> list[tuple[Kind, str]]:
    """Return the verdict, sentence by sentence: what is better, what worse, what was not seen, what it rests on."""
    if not sweep.count("done"):
        failed, pending = sweep.count("failed"), sweep.count("pending")
        if not failed:
            return [("lead", f"No run has finished yet: {pending:,} pending.")]
        ended = f"All {counted(failed, 'run')}" if not pending else f"{counted(failed, 'run')} of {failed + pending:,}"
        return [("lead", f"{ended} failed, none has finished; there is nothing to compare.")]
    if not sweep.values()[sweep.baseline]:
        return [("lead", f"The baseline {sweep.baseline} has no finished run, so nothing can be held against it.")]
    if len(sweep.variants) == 1:
        return [("lead", f"{sweep.baseline} is the only variant; there is nothing to hold against it.")]

    unit, digits = unit_of(sweep), Digits(judgement)
    judged = sorted((d for d in judgement.differences if d.verdict), key=lambda d: d.mean)
    lines: list[tuple[Kind, str]] = []
    if len(judged) > MOST_SENTENCES:
        counts = {kind: sum(d.verdict == kind for d in judged) for kind in ("better", "worse", "no difference seen")}
        lines.append(
            (
                "lead",
                f"Of {len(judged)} variants {counts['better']} beat {sweep.baseline}, {counts['worse']} are worse, "
                f"and in {counts['no difference seen']} no difference is seen.",
            )
        )
    for verdict, kind in (("better", "better"), ("worse", "worse"), ("no difference seen", "neither")):
        chosen = [d for d in judged if d.verdict == verdict]
        if kind == "worse":
            chosen.reverse()  # the worst first
        most = MOST_SENTENCES if len(judged) <= MOST_SENTENCES else MOST_SENTENCES // 2
        shown = chosen if len(chosen) <= most else chosen[: most if kind != "neither" else 0]
        lines += [(kind, _sentence(sweep.baseline, d, unit, digits)) for d in shown]
        if rest := [d.variant for d in chosen[len(shown) :]]:
            what = {"neither": "No difference is seen in", "better": "Better, too:", "worse": "Worse, too:"}[kind]
            lines.append((kind, f"{what} {named(rest)}."))
    if judged:
        lines.append(("remark", _smallest_sentence(sweep, judgement, digits)))
    rest = _without_verdict(sweep, judgement)
    lines += [("remark" if lines or index else "lead", line) for index, line in enumerate(rest)]
    return lines


def _sentence(baseline: str, difference: Difference, unit: str, digits: Digits) -> str:
    size = difference.mean
    turn = -1 if difference.verdict == "better" else 1  # "better by" is a positive number
    low, high = sorted((turn * difference.low, turn * difference.high))
    sure = (
        f"{digits.difference(turn * size)} {unit}, {CONFIDENCE} interval {digits.interval(low, high)}, "
        f"{p_text(difference.p)}, {counted(len(difference.seeds), 'seed')}"
    )
    by = percent(turn * difference.percent)
    own = " Its runs scatter more than the others', so it is judged by their scatter alone." * difference.own_scatter
    if difference.verdict == "better":
        return f"{difference.variant} beats {baseline} by {by} ({sure}).{own}"
    if difference.verdict == "worse":
        return f"{difference.variant} is worse than {baseline} by {by} ({sure}).{own}"
    return (
        f"No difference is seen between {difference.variant} and {baseline}: "
        f"{percent(difference.percent, sign=True)} ({sure}).{own}"
    )


def _smallest_sentence(sweep: Sweep, judgement: Judgement, digits: Digits) -> str:
    smallest = judgement.smallest
    if smallest == 0:
        return "The seeds made no difference at all: the runs have no noise to hold a difference against."
    share = percent(100 * smallest / abs(judgement.baseline_mean)) if judgement.baseline_mean else "-"
    return (
        f"Smallest difference this sweep could have seen: {share} ({digits.difference(smallest)} {unit_of(sweep)}, "
        f"with a probability of {100 * POWER:.0f} %)."
    )


def _without_verdict(sweep: Sweep, judgement: Judgement) -> list[str]:
    """Return a line on each kind of variant that has no verdict, and on what is left out or still to come."""
    out, failed, unfinished, single = [], [], [], []
    for difference in judgement.differences:
        runs = sweep.runs_of(difference.variant)
        if difference.verdict:
            continue
        if len(difference.seeds) == 1:
            single.append(difference)
        elif runs and all(run.status == "failed" for run in runs):
            failed.append(difference.variant)
        else:
            unfinished.append(difference.variant)
    if single:
        told = [f"{d.variant} {percent(d.percent, sign=True)}" for d in sorted(single, key=lambda d: d.mean)]
        start = "One seed" if len(sweep.seeds) == 1 else f"One seed in common with {sweep.baseline}"
        out.append(
            f"{start} allows no verdict: {named(told)}, which may be noise. Two seeds are the least, three are better."
        )
    if failed:
        out.append(f"All runs failed of {named(failed)}.")
    if unfinished:
        out.append(f"No finished run in common with {sweep.baseline}: {named(unfinished)}.")
    lost = [run.variant for run in sweep.runs if run.status == "failed" and run.variant not in failed]
    if lost:
        told = [f"{name} ({counted(lost.count(name), 'run')})" for name in dict.fromkeys(lost)]
        out.append(f"Failed and left out: {named(told)}; what is said of them is of their other seeds.")
    mute = [run for run in sweep.runs if run.status == "done" and not math.isfinite(run.final(sweep.metric))]
    if mute:
        told = [f"{run.variant} seed {run.seed}" for run in mute]
        out.append(f"Done without a finite {unit_of(sweep)} and left out: {named(told)}.")
    if pending := sweep.count("pending"):
        out.append(f"{counted(pending, 'run')} of {len(sweep.runs):,} pending: this can change.")
    return out


def spread_notes(sweep: Sweep, judgement: Judgement) -> list[str]:
    """Return what a reader should know about the comparison: unequal scatter, unequal budgets, several commits."""
    out = []
    if judgement.unsteady:
        verb = "scatters" if len(judgement.unsteady) == 1 else "scatter"
        remark = f"{named(judgement.unsteady)} {verb} more over the seeds than the others."
        if judgement.left_out:
            remark += f" The noise is estimated without {named(judgement.left_out)}."
        out.append(remark)
    done = [run for run in sweep.runs if run.status == "done"]
    budgets = [run.number(sweep.match) for run in done if math.isfinite(run.number(sweep.match))]
    if budgets and max(budgets) > 1.05 * min(budgets):
        ratio = max(budgets) / min(budgets) if min(budgets) else math.inf
        out.append(f"The runs were to have equal {sweep.match}, but the largest has {ratio:.2f} times the smallest.")
    commits = sorted({str(run.result["git_commit"])[:12] for run in done if run.result.get("git_commit")})
    if len(commits) > 1:
        out.append(f"The runs are of {len(commits)} commits: {named(commits)}.")
    return out


def method(sweep: Sweep, judgement: Judgement) -> str:
    """Return how the variants were compared, in a few sentences."""
    matched = {"tokens": "tokens", "flops": "FLOPs", "seconds": "wall time"}.get(sweep.match, sweep.match)
    start = f"Final validation {unit_of(sweep)}, lower is better, at equal {matched}; the data order is the same for all variants of a seed."
    if not judgement.num_compared:
        return start
    test = (
        f"Differences are paired by seed. Their noise (s = {judgement.residual_sd:.2g}, "
        f"{counted(judgement.degrees_of_freedom, 'degree')} of freedom) is pooled over all runs in a model variant + seed."
        if judgement.degrees_of_freedom
        else "Differences are paired by seed, each judged by its own scatter."
    )
    if judgement.num_compared == 1:
        corrected = "It is one comparison (a paired t-test): there is nothing to correct."
    else:
        corrected = (
            f"Intervals and p-values hold for all {judgement.num_compared} comparisons together (Dunnett): a sweep without "
            f"any difference would see one with a probability of {100 * LEVEL:.0f} %."
        )
    return f"{start} {test} {corrected}"
