"""The page about one run, from what lies in its folder."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lm.checkpoint.run_folder import read_run_info
from lm.config import Config, to_dict
from lm.errors import UsageError
from lm.report import goodput, page
from lm.report.plots import Series, line_plot, smooth
from lm.resolve import resolve
from lm.storage import is_remote, join, list_names, read_bytes, write_atomic
from lm.train.console import compact, duration
from lm.train.metrics import read_metrics
from lm.train.timeline import read_timeline

# What keeps the page small whatever the run wrote.
LATEST_CHARACTERS = 8000  # of the latest samples
EARLIER_CHARACTERS = 2000  # of each earlier one
EARLIER_SAMPLES = 12
VALUE_CHARACTERS = 400  # of one config value

Record = Mapping[str, Any]


def write_run_report(workdir: str) -> str:
    """Write `report.html` into a run's folder and return its path.

    Reads `config.json`, `metrics.jsonl`, `timeline.jsonl` and `samples/`. The same content gives the same page.

    Raises:
      UsageError: the folder holds no run, or one that has not logged a step yet.
      DamagedFileError: config.json or metrics.jsonl cannot be read as what it is.
      LmError: the page cannot be written.
    """
    run = read_run_info(workdir, required=())
    records = read_metrics(workdir)
    train = [record for record in records if record.get("kind", "train") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    if not records:
        raise UsageError(f'no metrics in "{workdir}" yet: a report needs at least one logged step.')

    time = goodput.breakdown(read_timeline(workdir))
    name = run.get("name") or _last_part(workdir)
    content = page.page(
        str(name),
        _subtitle(run),
        *_notices(run, train, evals),
        page.numbers(_headline(run, train, evals)),
        page.section("Curves", *_curves(train, evals), _eval_table(evals)),
        _samples(workdir),
        goodput.section(time) if time else None,
        _config(run.get("config") or {}),
        page.section("Environment", page.facts(_environment(run))),
    )
    path = join(workdir, "report.html")
    write_atomic(path, content)
    return path


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] if is_remote(path) else os.path.basename(os.path.abspath(path))


def _subtitle(run: Record) -> str:
    data = run.get("data") or {}
    known = [data.get("source") and f"trained on {data['source']}", run.get("devices")]
    if run.get("fingerprint"):
        known.append(f"run {str(run['fingerprint'])[:12]}")
    return " · ".join(str(part) for part in known if part)


def _notices(run: Record, train: Sequence[Record], evals: Sequence[Record]) -> list[page.Markup]:
    out = []
    planned = _planned_steps(run)
    reached = max((record["step"] for record in [*train, *evals]), default=0)
    if planned and reached < planned:
        out.append(page.notice(f"This run is not finished: it stands at step {reached:,} of {planned:,}."))
    broken = [record["step"] for record in train if "loss" in (record.get("nonfinite") or ())]
    if broken:
        out.append(
            page.notice(
                f"The loss was not finite in {len(broken):,} of {len(train):,} logged steps, first at step {broken[0]:,}."
            )
        )
    return out


def _planned_steps(run: Record) -> int | None:
    return ((run.get("config") or {}).get("optimizer") or {}).get("num_steps")


def _headline(run: Record, train: Sequence[Record], evals: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the figures at the top; what is not known says so."""
    validation = [record for record in evals if record.get("split", "validation") == "validation"]
    last = validation[-1] if validation else None
    if last:
        best = min(
            validation, key=lambda record: math.inf if record.get("bits_per_byte") is None else record["bits_per_byte"]
        )
        remark = f"at step {last['step']:,}"
        if best["step"] != last["step"] and best.get("bits_per_byte") is not None:
            remark += f"; best {best['bits_per_byte']:.4f} at {best['step']:,}"
        stride = f"stride {last['stride']:,}" if last.get("stride") else ""
        quality = [
            ("Validation bits per byte", _number(last, "bits_per_byte", ".4f"), remark),
            ("Validation loss", _number(last, "loss", ".4f"), "nats per token"),
            ("Perplexity", _number(last, "perplexity", ".2f"), stride),
        ]
    else:
        quality = [
            ("Training bits per byte", _recent(train, "bits_per_byte", ".4f"), "no validation yet"),
            ("Training loss", _recent(train, "loss", ".4f"), "nats per token"),
        ]
    newest = train[-1] if train else {}
    # The first logged steps may hold the compilation.
    steady = train[len(train) // 10 :] if len(train) >= 10 else train[-1:]
    mfu = _median(steady, "mfu")
    data_tokens = (run.get("data") or {}).get("train_tokens")
    epochs = newest.get("epoch")
    seen = f"{epochs:.2f} epochs" if epochs is not None else ""
    if data_tokens:
        seen = f"{seen or 'from data'} of {compact(data_tokens)}"
    return [
        *quality,
        ("Parameters", compact(run.get("num_parameters")), _exact(run.get("num_parameters"))),
        ("Tokens seen", compact(newest.get("tokens")), seen),
        (
            "Wall time",
            duration(_wall_seconds(train)),
            f"{newest['step']:,} step{'s' * (newest['step'] != 1)}" if newest else "",
        ),
        ("Tokens per second", compact(_median(steady, "tokens_per_second")), "median"),
        (
            "MFU",
            "unknown chip" if mfu is None else f"{mfu:.1%}",
            "" if mfu is None else "model FLOPs, causal attention at half",
        ),
    ]


def _number(record: Record, name: str, form: str) -> str:
    if name in (record.get("nonfinite") or ()):
        return "not finite"
    return "-" if record.get(name) is None else format(record[name], form)


def _recent(train: Sequence[Record], name: str, form: str) -> str:
    """Return the mean over the last twentieth of the records; a single batch is too noisy to quote."""
    last = train[-max(1, len(train) // 20) :]
    values = [record[name] for record in last if record.get(name) is not None]
    return format(statistics.fmean(values), form) if values else _number(last[-1] if last else {}, name, form)


def _median(records: Sequence[Record], name: str) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return statistics.median(values) if values else None


def _exact(count: int | None) -> str:
    return f"{count:,}" if isinstance(count, int) and count >= 1000 else ""


def _wall_seconds(train: Sequence[Record]) -> float | None:
    """Return the run's wall time; where `seconds` starts again (a resumed run), the parts add up."""
    total, previous = 0.0, None
    for record in train:
        now = record.get("seconds")
        if now is None:
            continue
        if previous is not None and now < previous:
            total += previous
        previous = now
    return None if previous is None else total + previous


def _curves(train: Sequence[Record], evals: Sequence[Record]) -> list[page.Markup]:
    steps = [record["step"] for record in train]
    splits = sorted(
        {record.get("split", "validation") for record in evals}, key=lambda name: (name != "validation", name)
    )

    def with_evals(field: str) -> list[Series]:
        values = [record.get(field) for record in train]
        series = [
            Series(steps, values, color=0, faint=True),
            Series(steps, smooth(values), "training", color=0),
        ]
        for color, split in enumerate(splits, 1):
            chosen = [record for record in evals if record.get("split", "validation") == split]
            x = [record["step"] for record in chosen]
            series.append(Series(x, [record.get(field) for record in chosen], split, color=color, points=True))
        return series

    def alone(field: str, smoothed: bool) -> list[Series]:
        values = [record.get(field) for record in train]
        if not smoothed:
            return [Series(steps, values)]
        return [Series(steps, values, faint=True), Series(steps, smooth(values))]

    def figure(field: str, caption: str, series: list[Series], kind: str = "", **options) -> page.Markup | None:
        told = f"{caption} against step. {_in_words(series)}"
        svg = line_plot(series, name=f"{field}{kind}", description=told, **options)
        return svg and page.figure(svg, caption, kind)

    bits = with_evals("bits_per_byte")
    small = [
        figure("loss", "Loss, nats per token", with_evals("loss")),
        figure("learning_rate", "Learning rate", alone("learning_rate", False), from_zero=True),
        figure("grad_norm", "Gradient norm, before clipping", alone("grad_norm", True), from_zero=True),
        figure("tokens_per_second", "Tokens per second", alone("tokens_per_second", True), from_zero=True),
    ]
    pieces = [
        figure("bits_per_byte", "Bits per byte", bits, "wide", width=876, height=320),
        figure("bits_per_byte", "Bits per byte", bits, "narrow"),
        page.grid(*small) if any(small) else None,
    ]
    return [piece for piece in pieces if piece] or [page.paragraph("No finite values to draw.")]


def _in_words(series: Sequence[Series]) -> str:
    """Return first and last value of each line, for those who do not see it."""
    told = []
    for item in series:
        values = [value for value in item.finite()[1].tolist() if not math.isnan(value)]
        if values and not item.faint:
            told.append(f"{item.label or 'It'} goes from {values[0]:.4g} to {values[-1]:.4g}.")
    return " ".join(told)


def _eval_table(evals: Sequence[Record]) -> page.Markup | None:
    if not evals:
        return None
    columns = {
        "step": ",",
        "loss": ".4f",
        "perplexity": ".2f",
        "bits_per_byte": ".4f",
        "tokens": ",",
        "bytes": ",",
        "stride": ",",
    }
    rows = [
        [record.get("split", "validation"), *(_number(record, name, form) for name, form in columns.items())]
        for record in evals[-100:]
    ]
    shown = f"last {len(rows)} of {len(evals)}" if len(rows) < len(evals) else str(len(evals))
    header = ["split", *(name.replace("_", " ") for name in columns)]
    return page.fold(f"Evaluations ({shown})", page.table(header, rows, numeric=range(1, len(header))))


def _samples(workdir: str) -> page.Markup | None:
    """Return the latest samples, and earlier ones folded away, spread evenly if there are many."""
    folder = join(workdir, "samples")
    names = {int(stem): name for name in list_names(folder) for stem in [name.removesuffix(".txt")] if stem.isdecimal()}
    if not names:
        return None

    def sample(step: int, limit: int) -> page.Markup:
        text = read_bytes(join(folder, names[step])).decode("utf-8", "replace").strip("\n")
        cut = f"\n… {len(text) - limit:,} more characters" if len(text) > limit else ""
        return page.verbatim(text[:limit] + cut)

    *earlier, latest = sorted(names)
    stride = max(1, math.ceil(len(earlier) / EARLIER_SAMPLES))
    chosen = earlier[::-stride] if earlier else []
    count = f"{len(chosen)} of {len(earlier)}" if len(chosen) < len(earlier) else str(len(earlier))
    return page.section(
        f"Samples at step {latest:,}",
        sample(latest, LATEST_CHARACTERS),
        page.fold(
            f"Earlier samples ({count})",
            *(page.join([page.heading(f"Step {step:,}"), sample(step, EARLIER_CHARACTERS)]) for step in chosen),
        )
        if chosen
        else None,
    )


def _config(values: Mapping[str, Any]) -> page.Markup:
    """Return the config: fields that differ from their defaults, then all of them folded away."""
    fields, defaults = _flat(values), _flat(_default_config())
    changed = [
        (name, _shown(value), _shown(defaults[name]) if name in defaults else "-")
        for name, value in fields.items()
        if name not in defaults or value != defaults[name]
    ]
    everything = [(name, _shown(value)) for name, value in fields.items()]
    return page.section(
        "Config",
        page.table(["changed", "value", "default"], changed)
        if changed
        else page.paragraph("All fields are at their defaults."),
        page.fold(f"Whole config ({len(fields)} fields)", page.table(["field", "value"], everything)),
    )


def _default_config() -> dict[str, Any]:
    """Return the defaults as a run's config.json holds them: sizes that derive from others filled in, tuples as lists."""
    return json.loads(json.dumps(to_dict(resolve(to_dict(Config())))))


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in section.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}… ({len(text):,} characters)"


def _environment(run: Record) -> dict[str, str]:
    data = run.get("data") or {}
    packages = run.get("packages") or {}
    facts = {
        "command": run.get("command"),
        "devices": run.get("devices"),
        "git commit": run.get("git_commit"),
        "fingerprint": run.get("fingerprint"),
        "python": run.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(packages.items())),
    }
    facts |= {
        f"data: {name.replace('_', ' ')}": f"{value:,}" if isinstance(value, int) else value
        for name, value in data.items()
    }
    return {name: _shown(value) for name, value in facts.items() if value not in (None, "")}
