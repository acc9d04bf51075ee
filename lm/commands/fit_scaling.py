"""`lm fit-scaling`: a scaling law over a sweep's runs, and the loss that it predicts of a larger one."""

import argparse
from typing import Any

from lm.commands import common
from lm.errors import UsageError

HELP = """Fit L(N, D) = E + A / N^alpha + B / D^beta (Chinchilla's form) to a sweep's runs, N parameters and D training
tokens, and predict the loss of a larger run with its 95 % interval."""

FAR = 10  # times the largest run: a prediction beyond it says so


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="SWEEP_DIR", help="a sweep over sizes and numbers of tokens")
    parser.add_argument("--predict", dest="config", metavar="FILE", help="predict the loss of a config file")
    parser.add_argument("--predict-params", type=float, metavar="N", help="predict the loss of N parameters …")
    parser.add_argument("--predict-tokens", type=float, metavar="D", help="… trained on D tokens")
    parser.add_argument("--flops", type=float, metavar="C", help="the best N and D for C = 6 N D training FLOPs")
    parser.add_argument(
        "--hold-back",
        action="append",
        default=[],
        metavar="VARIANT",
        help="leave a variant out of the fit and compare it with its prediction; may be repeated",
    )
    parser.add_argument(
        "--parameters",
        choices=("non_embedding", "total", "active"),
        default="non_embedding",
        help="what counts as N: without embeddings and head (default: predicts better), all, or those that one token uses",
    )
    parser.add_argument("--metric", choices=("loss", "bits_per_byte"), default="loss", help="L (default: loss)")
    parser.add_argument("--out", metavar="FILE", help="draw the runs, the law and the prediction: .png or .svg")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "examples:\n"
        "  lm fit-scaling runs/scaling --predict-params 1.8e6 --predict-tokens 1e6 --out scaling.png\n"
        "  lm fit-scaling runs/scaling --predict experiments/tiny.py --config.model.num_layers=8\n"
        "  lm fit-scaling runs/scaling --hold-back 192x1048576 --flops 1e14\n\n"
        "Runs should see each token about once, with a tuned learning rate and a schedule that ends with their tokens.\n"
        "Of variants with the same N and D the best counts, so a sweep may also run over learning rates."
    )


def run(args: argparse.Namespace) -> None:
    _check(args)
    from lm.sweep.scaling import fit
    from lm.sweep.scaling_runs import read_runs

    sweep = read_runs(args.folder, parameters=args.parameters, metric=args.metric)
    runs = sweep.tuned(without=args.hold_back)
    fitted = fit(runs)
    wanted = [(name, run.parameters, run.tokens, run.loss) for name in args.hold_back for run in sweep.by_variant[name]]
    if args.config:
        wanted.append((args.config, *_place(args, sweep.tokenizer), None))
    if args.predict_params:
        wanted.append((None, args.predict_params, args.predict_tokens, None))
    predictions = [_prediction(fitted, *place) for place in wanted]
    for of, name in (("parameters", "N"), ("tokens", "D")):
        largest = max(getattr(run, of) for run in runs)
        if any(row[of] > FAR * largest for row in predictions):
            common.note(
                f"{name} is more than {FAR} times the largest run's: the interval takes the law to hold so far."
            )
    result = {
        "folder": args.folder,
        "metric": args.metric,
        "parameters_are": args.parameters,
        "runs": len(runs),
        "planned_runs": sweep.planned,
        "law": {name: getattr(fitted.law, name) for name in fitted.intervals},
        "intervals": {name: list(bounds) for name, bounds in fitted.intervals.items()},
        "noise": fitted.noise,
        "checks": [vars(check) for check in fitted.checks],
        "widening": fitted.widening,
        "predictions": predictions,
        "optimum": _optimum(fitted, args.flops) if args.flops else None,
    }
    if args.out:
        from lm.report.scaling_law import draw

        rows = [vars(run) for run in runs]
        draw(rows, fitted.law.loss, predictions, args.out, title=_equation(result), metric=_unit(args.metric))
    print(common.result_json(result) if args.json else _text(result, runs))


def _check(args: argparse.Namespace) -> None:
    if (args.predict_params is None) != (args.predict_tokens is None):
        raise UsageError("--predict-params N and --predict-tokens D belong together.")
    for name in ("predict_params", "predict_tokens", "flops"):
        value = getattr(args, name)
        if value is not None and not 1 <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: expected 1 or more.")
    if args.overrides and not args.config:
        raise UsageError(f"--config.{args.overrides[0][0]} needs --predict FILE.")
    if args.out is not None and not args.out.endswith((".png", ".svg")):
        raise UsageError(f"--out {args.out}: expected a name that ends in .png or .svg.")


def _place(args: argparse.Namespace, tokenizer: tuple) -> tuple[int, int]:
    """Return N and D of a config.

    Raises:
      UsageError: its losses per token would not compare with the sweep's.
    """
    from lm.data.stages import Stages
    from lm.model.flops import parameter_counts
    from lm.resolve import with_vocabulary
    from lm.sweep.scaling_runs import tokenizer_of

    config = common.resolve_anywhere(common.load_config(args.config, args.overrides))
    if args.metric == "loss" and tokenizer_of(config.data) != tokenizer:
        names = (" ".join(map(str, of)) for of in (tokenizer_of(config.data), tokenizer))
        raise UsageError(
            "{} has the tokenizer {}, the sweep {}: give the same, or --metric bits_per_byte.".format(
                args.config, *names
            )
        )
    if config.model.vocab_size is None:
        config = with_vocabulary(config, common.tokenizer_vocabulary(config))
    stages = Stages(config.data.schedule, config.data.sequence_length)
    return parameter_counts(config.model)[args.parameters], stages.tokens(config.optimizer.num_steps)


def _prediction(fitted, name: str | None, parameters: float, tokens: float, measured: float | None) -> dict[str, Any]:
    predicted = fitted.predict(parameters, tokens)
    return {
        "name": name,
        "parameters": parameters,
        "tokens": tokens,
        "predicted": predicted.loss,
        "low": predicted.low,
        "high": predicted.high,
        "half_width": predicted.half_width,
        "measured": measured,
        "error": None if measured is None else predicted.loss / measured - 1,
    }


def _optimum(fitted, flops: float) -> dict[str, Any]:
    best, low, high = fitted.optimum(flops)
    return {
        "flops": flops,
        "parameters": best[0],
        "parameters_interval": [low[0], high[0]],
        "tokens": best[1],
        "tokens_interval": [low[1], high[1]],
        "predicted": fitted.law.loss(*best),
    }


def _unit(metric: str) -> str:
    return {"loss": "nats per token", "bits_per_byte": "bits per byte"}[metric]


def _equation(result: dict[str, Any]) -> str:
    law = result["law"]
    terms = f"{law['A']:.4g} / N^{law['alpha']:.3f} + {law['B']:.4g} / D^{law['beta']:.3f}"
    return f"L(N, D) = {law['E']:.3f} + {terms}"


def _text(result: dict[str, Any], runs) -> str:
    from lm.train.console import compact

    counted = {"non_embedding": "parameters without embeddings", "total": "parameters", "active": "active parameters"}
    sizes, tokens = ([getattr(run, of) for run in runs] for of in ("parameters", "tokens"))
    lines = [
        f"{_equation(result)}   L: {_unit(result['metric'])}, N: {counted[result['parameters_are']]}, D: training tokens",
        f"fitted to {len(runs)} runs of {compact(min(sizes))} to {compact(max(sizes))} parameters on {compact(min(tokens))} "
        f"to {compact(max(tokens))} tokens; a run lies {100 * result['noise']:.2f} % from the law",
        "95 % intervals: "
        + ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in result["intervals"].items()),
    ]
    for check in result["checks"]:
        lines.append(
            f"check: {check['held_back']} ({check['runs']} runs) predicted from smaller runs: "
            f"{100 * check['error']:+.2f} %, expected ±{100 * check['expected']:.2f} %"
        )
    if result["widening"] > 1:
        lines.append(f"intervals of predictions are {result['widening']:.2f} times as wide for what the checks missed")
    for row in result["predictions"]:
        name = f"{row['name']}: " if row["name"] else ""
        lines.append(
            f"{name}{compact(row['parameters'])} parameters on {compact(row['tokens'])} tokens: predicted "
            f"{row['predicted']:.4f}, 95 % interval {row['low']:.4f} to {row['high']:.4f} (±{100 * row['half_width']:.2f} %)"
        )
        if row["measured"] is not None:
            inside = "inside" if row["low"] <= row["measured"] <= row["high"] else "outside"
            lines[-1] += f"; measured {row['measured']:.4f}, {inside}: {100 * row['error']:+.2f} %"
    if optimum := result["optimum"]:
        bounds = " and ".join(
            f"{compact(optimum[of])} {of} ({' to '.join(map(compact, optimum[f'{of}_interval']))})"
            for of in ("parameters", "tokens")
        )
        lines.append(f"best for {optimum['flops']:.3g} FLOPs: {bounds}, predicted {optimum['predicted']:.4f}")
    return "\n".join(lines)
