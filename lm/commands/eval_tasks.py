"""`lm eval --tasks`: questions with right answers, by the built-in runner or by lm-evaluation-harness."""

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from lm.checkpoint.run_folder import locate
from lm.commands import common
from lm.commands.opened import OpenedRun, open_checkpoint
from lm.config import Config, EvalConfig
from lm.errors import ConfigError, LmError, Preempted, UsageError
from lm.storage import join, make_folder, write_atomic
from lm.train.interrupts import Interrupts

_ONLY_WITH_TASKS = ("tasks_data", "include_path", "num_fewshot", "limit", "add_bos", "again")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", metavar="NAMES", help="names or files, separated by commas, instead of --data")
    tasks.add_argument("--tasks-data", metavar="DIR", help="where the files of named tasks are, at any depth")
    tasks.add_argument(
        "--include-path", metavar="DIR", help="run lm-evaluation-harness's tasks, from the YAML files in this folder"
    )
    tasks.add_argument(
        "--num-fewshot",
        type=_shots,
        metavar="K",
        help="solved questions before each, or core: as CORE has (default: 0)",
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="the first N items of each task")
    tasks.add_argument("--add-bos", action="store_true", help="put the end-of-text token before each context")
    tasks.add_argument("--again", action="store_true", help="score anew what earlier runs have kept")


def _shots(text: str) -> int | str:
    if text != "core" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a number, or core")
    return text if text == "core" else int(text)


def refuse_without_tasks(args: argparse.Namespace) -> None:
    """Refuse the options that only tasks have."""
    for name in _ONLY_WITH_TASKS:
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} belongs to --tasks.")


def run(args: argparse.Namespace) -> None:
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks is empty; name tasks or files.")
    if isinstance(args.num_fewshot, int) and args.num_fewshot < 0:
        raise UsageError(f"--num-fewshot {args.num_fewshot}: expected 0 or more.")
    if args.stride or args.max_tokens:
        raise UsageError("--stride and --max-tokens belong to --data.")
    if args.include_path:
        _run_harness(args, names)
    else:
        _run_built_in(args, names)


def tasks_of(config: EvalConfig) -> list:
    """Return the tasks that a run scores while it trains.

    Raises:
      UsageError: there is no such task, two have one name, or a file has no known form.
    """
    from lm.evaluate.tasks import find_tasks, load_task

    files = [found for name in config.tasks for found in find_tasks(name, config.tasks_data)]
    if len({name for name, _ in files}) < len(files):
        raise ConfigError("config.eval.tasks: two tasks have the same name.")
    return [load_task(name, path, limit=config.task_items) for name, path in files]


def hooks(config: Config, built, tokenizer, tasks: list) -> list:
    """Return the loop's hook that scores tasks, none if there are none; its records' `split` is the task.

    Raises:
      ConfigError: a task has an item that does not fit the model.
    """
    from lm.evaluate.prefixes import truncated
    from lm.evaluate.runner import run_task
    from lm.evaluate.score import Scorer
    from lm.evaluate.tasks import Encoder
    from lm.train.loop import Hook

    if not tasks:
        return []
    scorer, encode = Scorer(config, built.mesh), Encoder(tokenizer)
    for task in tasks:  # an item that cannot be scored is found now, not at the first evaluation
        for item in task.items:
            try:
                for pair in item.pairs():
                    truncated(*encode(*pair), scorer.max_length)
            except UsageError as error:
                raise ConfigError(f"config.eval.tasks: {task.name}, item {item.id}: {error}") from error

    def evaluate(step: int, params) -> list[dict[str, Any]]:
        records = []
        for task in tasks:
            figures = run_task(scorer, params, encode, task)
            records.append({"kind": "task", "step": step, "split": task.name, "items": len(task.items), **figures})
        return records

    return [Hook(config.eval.every_steps, evaluate)]


def _scorer(args: argparse.Namespace, opened: OpenedRun):
    from lm.evaluate.score import Scorer

    length, model = args.sequence_length, opened.config.model
    if length and model.positions == "learned" and length > model.max_positions:
        raise UsageError(f"--sequence-length {length}: the model has {model.max_positions} learned positions.")
    batch_tokens = args.batch_size and args.batch_size * opened.config.data.sequence_length
    return Scorer(opened.config, opened.mesh, max_length=length, batch_tokens=batch_tokens)


def _run_built_in(args: argparse.Namespace, names: list[str]) -> None:
    from lm.evaluate.core import CORE, core_score
    from lm.evaluate.records import ItemLog
    from lm.evaluate.runner import harness_results, run_task
    from lm.evaluate.tasks import Encoder, find_tasks, load_task

    files = [found for name in names for found in find_tasks(name, args.tasks_data)]
    if len({name for name, _ in files}) < len(files):
        raise UsageError("--tasks: two tasks have the same name.")
    fixed = 0 if args.num_fewshot == "core" else args.num_fewshot or 0
    shots = {name: CORE[name][1] if args.num_fewshot == "core" and name in CORE else fixed for name, _ in files}
    tasks = [load_task(name, path, num_fewshot=shots[name], limit=args.limit) for name, path in files]
    with Interrupts().installed() as interrupts:
        opened = open_checkpoint(args)
        scorer, encode = _scorer(args, opened), Encoder(opened.tokenizer, add_bos=args.add_bos)
        folder = _folder(args, opened)
        about = {**_about(args, opened), "max_length": scorer.max_length, "add_bos": args.add_bos}
        results = {}
        for task in tasks:
            stem = _stem(task, about)
            again = {item.id for item in task.items} if args.again else ()
            log = ItemLog(join(folder, f"{stem}.jsonl"), again=again) if folder else None
            if log and (kept := sum(item.id in log.done for item in task.items)):
                common.note(f"{task.name}: {kept} of {len(task.items)} items are kept from an earlier run.")
            with interrupts.deferred():
                figures = run_task(
                    scorer,
                    opened.params,
                    encode,
                    task,
                    log,
                    stop=lambda: interrupts.requested,
                    progress=common.progress_line(task.name, "items", tells_end=True),
                )
            results[task.name] = {**figures, "items": len(task.items), "file": log and log.path}
            if folder:
                own = harness_results(task, figures, **about)
                part = f"-limit{len(task.items)}" if len(task.items) < task.total else ""
                write_atomic(join(folder, f"{stem}{part}.json"), common.result_json(own, indent=2) + "\n")
            if interrupts.requested and task is not tasks[-1]:
                raise Preempted(
                    f"stopped by {interrupts.requested} after {task.name}; run the same command to continue."
                )
    core = core_score({name: figures["acc_centered"] for name, figures in results.items()}, shots)
    _show(args, {"tasks": results, "core": core, **about}, opened)


def _folder(args: argparse.Namespace, opened: OpenedRun) -> str | None:
    """Return the run's folder for what was opened, `evals/400-ema` or `evals/400-average3`; None if it is read-only."""
    workdir, _, _ = locate(args.checkpoint)
    folder = join(workdir, "evals", f"{opened.step}-{opened.weights}{len(opened.averaged) or ''}")
    try:
        make_folder(folder)
    except LmError as error:
        common.note(f"{error} Results are shown and not kept.")
        return None
    return folder


def _about(args: argparse.Namespace, opened: OpenedRun) -> dict[str, Any]:
    return {
        "checkpoint": args.checkpoint,
        "run": opened.info["fingerprint"],
        "step": opened.step,
        "weights": opened.weights,
        **({"averaged": opened.averaged} if opened.averaged else {}),
        "digests": _digests(args, opened),
    }


def _digests(args: argparse.Namespace, opened: OpenedRun) -> list[str | None]:
    """Return what tells the opened checkpoints from others of the same steps; None where one was saved without."""
    from lm.checkpoint.reader import CheckpointReader

    _, folder, _ = locate(args.checkpoint)
    steps = opened.averaged or (opened.step,)
    return [CheckpointReader(join(folder, str(step))).json("meta").get("digest") for step in steps]


def _stem(task, about: dict[str, Any]) -> str:
    """Return the name of a task's files, which says what decides its items' scores."""
    identity = [
        task.fingerprint,
        *(about.get(name) for name in ("run", "averaged", "digests", "max_length", "add_bos")),
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    shots = f"-{task.num_fewshot}shot" if task.num_fewshot else ""
    return f"{task.name}{shots}-{digest}"


def _show(args: argparse.Namespace, result: dict[str, Any], opened: OpenedRun) -> None:
    if args.json:
        print(common.result_json(result))
        return
    columns = ("acc", "acc_norm", "acc_centered", "bits_per_byte")
    width = max(4, *map(len, result["tasks"]))
    print(f"{'task':<{width}}  {'items':>6}  {'acc':>15}  {'acc_norm':>15}  {'centred':>8}  {'bits/byte':>9}")
    for name, figures in result["tasks"].items():
        acc, norm = (_with_error(figures, column) for column in columns[:2])
        centred, bits = figures["acc_centered"], figures["bits_per_byte"]
        print(f"{name:<{width}}  {figures['items']:>6}  {acc:>15}  {norm:>15}  {centred:>8.4f}  {bits:>9.4f}")
    if core := result["core"]:
        print(f"CORE of {len(core['tasks'])} of its {core['of']} tasks: {core['score']:.4f}")
    print(opened.describe_weights())


def _with_error(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return "-"
    error = figures[f"{name}_stderr"]
    return f"{figures[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def harness_model(opened: OpenedRun, scorer, *, add_bos: bool = False):
    """Return a run as lm-evaluation-harness's model class (`lm.evaluate.harness.Harness`)."""
    from lm.evaluate.harness import Harness
    from lm.infer import Generator, SamplingConfig

    generator = Generator(opened.model, opened.tokenizer.vocab_size, opened.tokenizer.eot_id)

    def generate(prompts, *, max_new_tokens: int, **sampling):
        options = {"max_new_tokens": max_new_tokens, "sampling": SamplingConfig(**sampling)}
        return generator.stream(opened.params, prompts, **options)

    return Harness(scorer, generate, opened.params, opened.tokenizer, add_bos=add_bos)


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep `datasets`, imported inside, from asking the Hub about a task's local files."""
    added = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"} - os.environ.keys()
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _run_harness(args: argparse.Namespace, names: list[str]) -> None:
    if args.again or args.tasks_data or args.num_fewshot == "core":
        raise UsageError(
            "--again, --tasks-data and --num-fewshot core belong to the built-in tasks; leave out --include-path."
        )
    if not os.path.isdir(args.include_path):
        raise UsageError(f'--include-path "{args.include_path}" is not a folder.')
    with _hub_offline():
        from lm.evaluate.harness import run_harness

        opened = open_checkpoint(args)
        model = harness_model(opened, _scorer(args, opened), add_bos=args.add_bos)
        results = run_harness(model, names, args.include_path, num_fewshot=args.num_fewshot, limit=args.limit)
    results["config"] |= _about(args, opened)
    text = common.result_json(results, indent=2, default=str)
    folder = _folder(args, opened)
    path = folder and join(folder, f"harness-{time.strftime('%Y%m%dT%H%M%S')}.json")
    if path:
        write_atomic(path, text + "\n")
    if args.json:
        print(text)
        return
    from lm_eval.utils import make_table

    print(make_table(results))
    print(opened.describe_weights() + (f"; written to {path}" if path else ""))
