"""From a sweep to its runs: a whole config each, what is matched between them, and an id that names it."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from lm.capabilities import Capabilities
from lm.checkpoint.run_folder import read_run_info
from lm.config import Config, ParallelConfig, set_fields, to_dict
from lm.data.dataset import Dataset
from lm.data.stages import Stages
from lm.errors import ConfigError, DamagedFileError, UsageError
from lm.model.flops import train_flops_per_token
from lm.resolve import fingerprint, resolve, with_vocabulary
from lm.storage import exists, join, read_object, write_atomic
from lm.sweep.algebra import Sweep, Variant
from lm.train.step import program_config

SWEEP = "sweep.json"
CALIBRATION_STEPS = 40  # of a run that measures a variant's speed


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    id: str  # of its resolved config and its data: 12 hexadecimal digits
    variant: str
    overrides: Mapping[str, Any]  # the variant's
    seed: int
    group: str  # runs of one group share their compiled programs
    steps: int
    tokens: int  # of training
    config: Mapping[str, Any]  # whole, as plain data, to be resolved where it runs

    @property
    def about(self) -> dict[str, Any]:
        """What a result says of its run."""
        return {"id": self.id, "variant": self.variant, "overrides": dict(self.overrides), "seed": self.seed}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a sweep: the first seed of every variant before the second of any."""

    name: str
    description: str
    config_file: str
    sweep: Sweep
    base: Mapping[str, Any]  # the config without a variant's overrides
    runs: tuple[Run, ...]


def make_plan(
    sweep: Sweep,
    base: Mapping[str, Any],
    open_dataset: Callable[[Config], Dataset],
    *,
    name: str,
    description: str = "",
    rates: Mapping[str, float] | None = None,
) -> Plan:
    """Return a sweep's runs; everything about them is checked here, before the first one starts.

    Args:
      sweep: what varies.
      base: the sweep's config as plain data, its own overrides applied.
      open_dataset: prepares and opens the data of a resolved config.
      name, description: for people.
      rates: training tokens per second of each variant, measured; needed where `seconds` are matched.

    Raises:
      ConfigError: a variant's config is not valid, or is that of another variant.
    """
    opened = once_each(open_dataset)

    def whole(config_dict: Mapping[str, Any]) -> Config:
        config = _resolve(config_dict)
        return with_vocabulary(config, opened(config).vocab_size)

    base_config = whole(base)
    configs = {}
    for variant in sweep.variants:
        config_dict = with_overrides(base, variant.overrides)
        try:
            config = whole(config_dict)
        except ConfigError as error:
            raise ConfigError(f'variant "{variant.name}": {error}') from error
        if sweep.match != "steps" and "optimizer.num_steps" not in variant.overrides:
            budget = _amount(sweep, base_config, opened(base_config), rates, sweep.baseline)
            steps = budget / _amount(sweep, config, opened(config), rates, variant.name) * config.optimizer.num_steps
            _set_steps(config_dict, config, max(1, round(steps)))
        configs[variant.name] = config_dict
    runs, names = [], {}
    for seed in sweep.seeds:
        for variant in sweep.variants:
            config_dict = with_overrides(configs[variant.name], {"seed": seed})
            run = run_of(variant, config_dict, base, opened)
            if (other := names.setdefault(run.id, variant.name)) != variant.name:
                raise ConfigError(f'variants "{other}" and "{variant.name}" are the same config.')
            runs.append(run)
    return Plan(name, description, sweep.config, sweep, base, tuple(runs))


def once_each(open_dataset: Callable[[Config], Dataset]) -> Callable[[Config], Dataset]:
    """Return `open_dataset`, called once for the configs of the same data."""
    datasets: dict[Any, Dataset] = {}

    def opened(config: Config) -> Dataset:
        if config.data not in datasets:
            datasets[config.data] = open_dataset(config)
        return datasets[config.data]

    return opened


def run_of(
    variant: Variant, config_dict: Mapping[str, Any], base: Mapping[str, Any], open_dataset: Callable[[Config], Dataset]
) -> Run:
    """Return the run of a config.

    Args:
      variant: whose run it is.
      config_dict: the whole config as plain data.
      base: the config that it comes from, which says what devices it runs on.
      open_dataset: prepares and opens the data of a resolved config.

    Raises:
      ConfigError: the config is not valid.
    """
    config = _resolve(config_dict)
    dataset = open_dataset(config)
    config = with_vocabulary(config, dataset.vocab_size)
    steps = config.optimizer.num_steps
    return Run(
        id=_identity(config, dataset),
        variant=variant.name,
        overrides=variant.overrides,
        seed=config.seed,
        group=_group(config, base),
        steps=steps,
        tokens=_stages(config).tokens(steps),
        config=config_dict,
    )


def calibration_of(sweep: Sweep) -> Sweep:
    """Return the sweep whose runs measure how fast each variant trains that does not say how long it does."""
    # In the variants, so that no override of the base makes the runs longer.
    short = {"optimizer.num_steps": CALIBRATION_STEPS, "optimizer.warmup_steps": 0, "eval.tokens": 1}
    variants = [
        Variant(variant.name, {**variant.overrides, **short})
        for variant in sweep.variants
        if "optimizer.num_steps" not in variant.overrides or variant.name == sweep.baseline
    ]
    return dataclasses.replace(sweep, match="steps", seeds=sweep.seeds[:1], variants=variants)


def write_plan(folder: str, plan: Plan) -> None:
    """Write `sweep.json`, for the workers and for the report.

    Raises:
      ConfigError: the folder holds another sweep, or one whose runs are evaluated otherwise.
    """
    path = join(folder, SWEEP)
    if exists(path):
        there = read_plan(folder)
        evaluated = [there["base"]["eval"] | {"every_steps": 0}, {**plan.base["eval"], "every_steps": 0}]
        if there["name"] != plan.name:
            raise ConfigError(f'"{folder}" holds the sweep "{there["name"]}"; choose another --workdir.')
        if json.dumps(evaluated[0]) != json.dumps(evaluated[1]) or there["metric"] != plan.sweep.metric:
            raise ConfigError(
                f'"{folder}" holds runs that were evaluated otherwise (config.eval or the metric); choose another --workdir.'
            )
    content = {
        "name": plan.name,
        "description": plan.description,
        "metric": plan.sweep.metric,
        "match": plan.sweep.match,
        "baseline": plan.sweep.baseline,
        "config_file": plan.config_file,
        "seeds": list(plan.sweep.seeds),
        "base": plan.base,
        "variants": [dataclasses.asdict(variant) for variant in plan.sweep.variants],
        "runs": [dataclasses.asdict(run) for run in plan.runs],
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_plan(folder: str) -> dict[str, Any]:
    """Return `sweep.json`.

    Raises:
      UsageError: the folder holds no sweep.
      DamagedFileError: the file is damaged.
    """
    path = join(folder, SWEEP)
    if not exists(path):
        raise UsageError(f'no sweep in "{folder}": it has no {SWEEP}. Give the --workdir of an `lm sweep`.')
    content = read_object(path)
    try:
        content["runs"] = [Run(**run) for run in content["runs"]]
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f'"{path}" is damaged: {error}.') from error
    return content


def _resolve(config_dict: Mapping[str, Any]) -> Config:
    """Resolve what does not depend on devices: a sweep for a pod is planned anywhere."""
    alone = {**config_dict, "parallel": to_dict(ParallelConfig(data=1))}
    return resolve(alone, capabilities=Capabilities(platform="tpu", device_kind="TPU7x"))  # it can do everything


def with_overrides(config_dict: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config as plain data with some fields changed.

    Raises:
      ConfigError: a field is unknown.
    """
    out = copy.deepcopy(dict(config_dict))
    set_fields(out, overrides)
    return out


def _amount(sweep: Sweep, config: Config, dataset: Dataset, rates: Mapping[str, float] | None, variant: str) -> float:
    """Return how much of what is matched a run of the config gets."""
    tokens = _stages(config).tokens(config.optimizer.num_steps)
    match sweep.match:
        case "flops":
            return training_flops(config, config.optimizer.num_steps)
        case "bytes":
            counts = dataset.counts("train")
            return tokens * counts["bytes"] / counts["tokens"]
        case "seconds":
            return tokens / rates[variant]
    return tokens


def _stages(config: Config) -> Stages:
    return Stages(config.data.schedule, config.data.sequence_length)


def training_flops(config: Config, steps: int) -> float:
    """Return the model FLOPs of a config's first steps of training."""
    by_length = _stages(config).tokens_by_length(steps)
    return sum(tokens * train_flops_per_token(config.model, length) for length, tokens in by_length.items())


def _set_steps(config_dict: dict[str, Any], config: Config, num_steps: int) -> None:
    """Change the length of a run, and its warmup in proportion."""
    warmup = round(config.optimizer.warmup_steps * num_steps / config.optimizer.num_steps)
    steps = {"optimizer.num_steps": num_steps, "optimizer.warmup_steps": min(warmup, num_steps - 1)}
    set_fields(config_dict, steps)


def _identity(config: Config, dataset: Dataset) -> str:
    init_from = read_run_info(config.init_from)["fingerprint"] if config.init_from else None
    return fingerprint(config, manifest_hash=dataset.hash, init_from=init_from)[:12]


def _group(config: Config, base: Mapping[str, Any]) -> str:
    identity = {**to_dict(program_config(config)), "parallel": base["parallel"]}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
