"""Task evaluation on this machine's CPU beside lm-evaluation-harness's own `hf` class: the same model, items and prompts.

    lm export --checkpoint runs/gpt2 --format hf --out exported
    python -m experiments.benchmarks.task_evaluation --checkpoint runs/gpt2 --exported exported --data eval/

Three ways: our built-in runner; the harness with our model class; the harness with its `hf` class (transformers and
torch, the exported model). The harness's tasks are YAML files written here over the same local data. A side is a
process of its own; the sides take turns, and each turn evaluates all tasks once. The first turn compiles or warms up
and is not counted; of the others the median counts. Seconds are those from texts to log-likelihoods, the harness's own
work aside.

On a machine that others load wall times mean little, and OpenMP's threads spin, which its CPU times count: put
`taskset -c 0 env OMP_NUM_THREADS=1` before the command, and compare the CPU seconds of one thread each.

GPT-2 of 6.9M parameters (6 layers of 256, 8,192 tokens), 100 items of each task, one thread, hf in batches of 8:
accuracies identical, log-likelihoods within 9e-5, 2.5 times as fast with our model class (1.8 on LAMBADA and PIQA to
4.3 on ARC, whose four answers share the question) and 2.4 times with the built-in runner.

Prints, per task, each side's accuracies, the largest difference of a log-likelihood, seconds and ratios as a table in
Markdown, then one JSON object. Needs the extras `eval` and `peer`, and accelerate.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

# Our name of a task -> how the harness is told to put its questions.
_CHOICES = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
_PROMPTS = {
    "arc_easy": _CHOICES | {"doc_to_text": "{{query.strip()}}\nAnswer:"},
    "piqa": _CHOICES | {"doc_to_text": "{{query.strip()}}\nAnswer:"},
    "copa": _CHOICES | {"doc_to_text": "{{query}}"},
    "hellaswag": _CHOICES | {"doc_to_text": "{{context}}"},
    "lambada_openai": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
    },
}
_BLIMP = {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "doc_to_target": 0,
}
TASKS = ("blimp_anaphor_number_agreement", "blimp_wh_island", "piqa", "copa", "arc_easy", "lambada_openai")


def write_tasks(folder: str, files: dict[str, str]) -> None:
    """Write the harness's task files over local data."""
    for name, path in files.items():
        if not path.endswith(".jsonl"):  # HellaSwag's text form
            path = _as_json_lines(name, path, folder)
        prompt = _BLIMP if name.startswith("blimp") else _PROMPTS[name]
        metrics = [{"metric": "acc"}] + [{"metric": "acc_norm"}] * (prompt["output_type"] == "multiple_choice")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": path}},
            "test_split": "test",
            "metric_list": metrics,
            **prompt,
        }
        with open(os.path.join(folder, f"{name}.yaml"), "w") as file:
            json.dump(task, file)  # JSON is YAML


def _as_json_lines(name: str, path: str, folder: str) -> str:
    from lm.evaluate.formats import read_items

    out = os.path.join(folder, f"{name}.jsonl")
    with open(out, "w") as file:
        for item in read_items(path, name):
            row = {"context": item.contexts[0], "choices": item.choices, "gold": item.gold}
            file.write(json.dumps(row) + "\n")
    return out


def harness_side(model, names: list[str], folder: str, limit: int | None):
    """Return `turn()`, which evaluates all tasks with the harness: seconds in the model, accuracies, log-likelihoods."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager, spent = TaskManager(include_path=folder, include_defaults=False), [0.0, 0.0]
    scored = model.loglikelihood

    def timed(*args, **options):
        wall, cpu = time.perf_counter(), time.process_time()
        out = scored(*args, **options)
        spent[0] += time.perf_counter() - wall
        spent[1] += time.process_time() - cpu
        return out

    model.loglikelihood = timed

    def turn() -> dict:
        found = {}
        for name in names:
            spent[:] = [0.0, 0.0]
            out = simple_evaluate(model=model, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0)
            samples = sorted(out["samples"][name], key=lambda sample: sample["doc_id"])
            figures = {key.split(",")[0]: value for key, value in out["results"][name].items()}
            found[name] = {
                "wall": spent[0],
                "cpu": spent[1],
                "acc": figures["acc"],
                "acc_norm": figures.get("acc_norm"),
                "loglikelihoods": [[float(r[0][0]) for r in sample["resps"]] for sample in samples],
            }
        return found

    return turn


def ours_in_harness(args: argparse.Namespace):
    """Return the harness's side with our model class."""
    from lm.commands.eval_tasks import harness_model
    from lm.commands.opened import open_run
    from lm.evaluate.score import Scorer

    run = open_run(args.checkpoint)
    model = harness_model(run, Scorer(run.config, run.mesh))
    return harness_side(model, args.tasks, args.folder, args.limit)


def hf_in_harness(args: argparse.Namespace):
    """Return the harness's side with its own class."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=args.exported, device="cpu", dtype="float32", batch_size=args.hf_batch_size)
    return harness_side(model, args.tasks, args.folder, args.limit)


def built_in(args: argparse.Namespace):
    """Return the side of our own runner."""
    from lm.commands.opened import open_run
    from lm.evaluate.records import ItemLog
    from lm.evaluate.runner import run_task
    from lm.evaluate.score import Scorer
    from lm.evaluate.tasks import Encoder, load_task

    run = open_run(args.checkpoint)
    scorer = Scorer(run.config, run.mesh)
    tasks = [load_task(name, path, limit=args.limit) for name, path in args.files.items()]

    def turn() -> dict:
        found = {}
        for task in tasks:
            log = ItemLog(os.path.join(args.folder, f"{task.name}.items"), again={item.id for item in task.items})
            wall, cpu = time.perf_counter(), time.process_time()
            figures = run_task(scorer, run.params, Encoder(run.tokenizer), task, log)
            found[task.name] = {
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
                "acc": figures["acc"],
                "acc_norm": figures.get("acc_norm"),
                "loglikelihoods": [log.done[item.id]["loglikelihoods"] for item in task.items],
            }
        return found

    return turn


SIDES = {"built-in": built_in, "ours": ours_in_harness, "hf": hf_in_harness}


def work(args: argparse.Namespace) -> None:
    """Be one side: a turn for each line of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what libraries print
    turn = SIDES[args.worker](args)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=answers, flush=True)


def compare(turns: dict[str, list[dict]], names: list[str]) -> list[dict]:
    """Return a row per task, and one of all."""

    def seconds(side: str, name: str, clock: str) -> float:
        return statistics.median(turn[name][clock] for turn in turns[side])

    rows = []
    for name in names:
        peer = turns["hf"][0][name]
        row = {"task": name, "items": len(peer["loglikelihoods"])}
        for side in SIDES:
            own = turns[side][0][name]
            row |= {f"{side} {key}": own[key] for key in ("acc", "acc_norm")}
            row |= {f"{side} {clock}": seconds(side, name, clock) for clock in ("wall", "cpu")}
            chain = itertools.chain.from_iterable
            pairs = zip(chain(own["loglikelihoods"]), chain(peer["loglikelihoods"]), strict=True)
            row[f"{side} difference"] = max(abs(a - b) for a, b in pairs)
        rows.append(row)
    total = {"task": "all", "items": sum(row["items"] for row in rows)}
    for side in SIDES:
        total |= {f"{side} {clock}": sum(row[f"{side} {clock}"] for row in rows) for clock in ("wall", "cpu")}
        total[f"{side} difference"] = max(row[f"{side} difference"] for row in rows)
    for row in (*rows, total):
        for side in ("built-in", "ours"):
            for clock in ("wall", "cpu"):
                row[f"{side} {clock} ratio"] = row[f"hf {clock}"] / row[f"{side} {clock}"]
    return [*rows, total]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's folder")
    parser.add_argument("--exported", required=True, metavar="DIR", help="the same checkpoint as Hugging Face's")
    parser.add_argument("--data", required=True, metavar="DIR", help="where the tasks' files are")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}, hellaswag")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--turns", type=int, default=3, help="of each side, the first not counted")
    parser.add_argument("--hf-batch-size", type=int, default=16)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from lm.evaluate.tasks import find_tasks

    args.tasks = args.tasks.split(",")
    args.files = {name: find_tasks(name, args.data)[0][1] for name in args.tasks}
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(folder, args.files)
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        workers = {
            side: subprocess.Popen(
                [sys.executable, "-m", "experiments.benchmarks.task_evaluation", "--worker", side]
                + ["--folder", folder, *sys.argv[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **offline, "HF_HOME": folder, "JAX_PLATFORMS": "cpu"},
            )
            for side in SIDES
        }
        turns: dict[str, list[dict]] = {side: [] for side in SIDES}
        for number in range(args.turns):
            for side in sorted(SIDES, reverse=bool(number % 2)):
                print("turn", file=workers[side].stdin, flush=True)
                line = workers[side].stdout.readline()
                if not line:
                    sys.exit(f"task_evaluation: the side {side} ended.")
                turns[side].append(json.loads(line))
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    rows = compare({side: own[1:] or own for side, own in turns.items()}, args.tasks)
    print("| task | items | acc: built-in, ours, hf | acc_norm | max Δ loglikelihood: built-in, ours |", end="")
    print(" CPU s: built-in, ours, hf | hf / ours | hf / built-in |")
    print("|---|---:|---|---|---|---|---:|---:|")
    for row in rows:
        acc, norm = (
            ", ".join("-" if row.get(f"{side} {key}") is None else f"{row[f'{side} {key}']:.4f}" for side in SIDES)
            for key in ("acc", "acc_norm")
        )
        far = ", ".join(f"{row[f'{side} difference']:.1e}" for side in ("built-in", "ours"))
        cpu = ", ".join(f"{row[f'{side} cpu']:.2f}" for side in SIDES)
        ratios = " | ".join(f"{row[f'{side} cpu ratio']:.2f}" for side in ("ours", "built-in"))
        print(f"| {row['task']} | {row['items']} | {acc} | {norm} | {far} | {cpu} | {ratios} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
