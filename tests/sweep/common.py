"""Sweep folders as `lm sweep` leaves them, their numbers made up."""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm import config
from lm.train.metrics import JsonlSink

STEPS = 600
TOKENS_PER_STEP = 1024


def run_id(variant: str, seed: int) -> str:
    return hashlib.sha256(f"{variant}/{seed}".encode()).hexdigest()[:12]


def write_sweep(
    folder: pathlib.Path,
    variants: Mapping[str, Mapping[str, Any]],
    effects: Mapping[str, float] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    baseline: str | None = None,
    noise: Callable[[str], float] | float = 0.004,
    failed: Mapping[tuple[str, int], str] | None = None,
    pending: Callable[[str, int], bool] = lambda variant, seed: False,
    match: str = "tokens",
    curves: bool = True,
    evals: int = 12,
    mfu: float | None = None,
    name: str = "swiglu_vs_gelu",
    description: str = "Does a gated feed-forward layer of the same number of parameters lower the loss?",
) -> str:
    """Write a sweep's folder; return its path.

    Args:
      folder: is made.
      variants: name -> the config's fields that it sets.
      effects: variant -> its true difference to the baseline, in bits per byte.
      baseline: the first variant if None.
      noise: standard deviation of a run's bits per byte, of each variant.
      failed: (variant, seed) -> the line of failure.
      pending: whether a run has no result yet.
      curves: write metrics.jsonl of each run.
      evals: how many evaluations a run has.
    """
    effects, failed = effects or {}, failed or {}
    baseline = baseline or next(iter(variants))
    (folder / "results").mkdir(parents=True)
    plan = {
        "name": name,
        "description": description,
        "metric": "bits_per_byte",
        "match": match,
        "baseline": baseline,
        "config_file": "experiments/tiny.py",
        "seeds": list(seeds),
        "base": json.loads(json.dumps(config.to_dict(config.Config()))),
        "variants": [{"name": variant, "overrides": dict(own)} for variant, own in variants.items()],
        "runs": [
            {"id": run_id(variant, seed), "variant": variant, "seed": seed, "group": "g0"}
            for seed in seeds
            for variant in variants
        ],
    }
    (folder / "sweep.json").write_text(json.dumps(plan))
    of_seed = {seed: np.random.default_rng(seed).normal(0, 0.004) for seed in seeds}
    for number, (variant, own) in enumerate(variants.items()):
        for seed in seeds:
            if pending(variant, seed):
                continue
            rng = np.random.default_rng([number, seed])
            sd = noise(variant) if callable(noise) else noise
            final = 1.573 + effects.get(variant, 0.0) + of_seed[seed] + rng.normal(0, sd)
            failure = failed.get((variant, seed))
            steps = STEPS // 3 if failure else STEPS
            record = {
                "id": run_id(variant, seed),
                "variant": variant,
                "overrides": dict(own),
                "seed": seed,
                "status": "failed" if failure else "done",
                "failure": failure,
                "final": None if failure else _validation(STEPS, final),
                "best": None if failure else _validation(STEPS, final),
                "steps": steps,
                "tokens": steps * TOKENS_PER_STEP,
                "flops": steps * TOKENS_PER_STEP * 2.1e7,
                "num_parameters": 3_548_160 + 1000 * number,
                "tokens_per_second": 13_200.0 - 55 * number,
                "mfu": mfu,
                "peak_memory_bytes": 812_000_000 + number * 1_000_000,
                "seconds": steps * TOKENS_PER_STEP / (13_200.0 - 55 * number),
                "git_commit": "0123abc",
                "config": plan["base"],
                "folder": f"runs/{run_id(variant, seed)}",
            }
            (folder / "results" / f"{record['id']}.json").write_text(json.dumps(record))
            if curves:
                _write_metrics(folder / "runs" / record["id"], record, final, rng, evals)
    return str(folder)


def _validation(step: int, bits: float) -> dict[str, Any]:
    loss = bits * 2.1
    return {
        "step": step,
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits,
        "tokens": 100_000,
        "bytes": 303_000,
    }


def _write_metrics(folder: pathlib.Path, record: Mapping[str, Any], final: float, rng, evals: int) -> None:
    folder.mkdir(parents=True)
    sink = JsonlSink(str(folder))
    for step in range(10, record["steps"] + 1, 10):
        bits = final + 1.9 * (math.exp(-step / 90) - math.exp(-STEPS / 90)) + 0.25 * (1 - step / STEPS)
        fraction = step / record["steps"]
        seen = {"step": step, "tokens": step * TOKENS_PER_STEP, "seconds": record["seconds"] * fraction}
        noisy = bits + rng.normal(0, 0.05)
        sink.write(seen | {"loss": noisy * 2.1, "bits_per_byte": noisy, "learning_rate": 1e-3, "mfu": None})
        if evals and step % (STEPS // evals) == 0:
            bits += rng.normal(0, 0.002) * (step < STEPS)
            sink.write({"kind": "eval", "split": "validation"} | _validation(step, bits))
    sink.close()
