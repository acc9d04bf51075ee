"""Attention beside its peers on this machine's device: milliseconds and TFLOP/s, forward and with the backward pass.

    python -m experiments.benchmarks.attention --torch-python path/to/python-with-torch
    python -m experiments.benchmarks.attention --case "window 1024" --case T2048   # names that hold one of these
    python -m experiments.benchmarks.attention --list

On a CPU the peers are torch's SDPA and `jax.nn.dot_product_attention`, in f32; on a GPU cuDNN through JAX, torch's
cuDNN and flash SDPA, FlexAttention (compiled) and JAX's Triton op; on a TPU JAX's Pallas flash attention and splash,
in bf16. Arrays have the layout that each takes; masks, and keys repeated for what has no grouped queries, are made
before the clock starts. A peer that cannot honour a case's masks, or only in O(T^2) memory for a long T, has a "-".
FLOPs are those of the pairs of query and key that see each other: 4 H a pair and head forward, 2.5 times that
backward. For 32,768 tokens there are our temporaries, compiled and not run.

Correctness first: on a small version of the case (512 tokens, a window of 100, documents of 128) the output and the
three gradients are held against f32 attention with all logits at once. What is further off than 1e-4 (f32) or 2e-2
(bf16), relative to the norm, or fails, is named under the table and not timed; if it is ours, the exit code is 1.

All of JAX is one process, torch another. Implementations take turns, one process idle while the other works, in
rounds that alternate who goes first. A turn gives the median of the calls that fit into it, at least three; a call
that is longer than the turn is a turn. The tables hold medians over the rounds, and ratios, to what `auto` chooses,
are medians of the rounds' ratios. On a GPU or TPU no case starts later than 8 minutes after the first. Prints Markdown, then one JSON object. Torch comes with
`pip install -e '.[peer]'`, or from --torch-python, an environment that needs nothing but torch and numpy.

Measured on two CPU cores, jax 0.10.2 beside torch 2.13 (--rounds 3 --seconds 0.5, 5:21 in all), forward and backward:
B2 T1024 N8 H64 causal 73.8 ms, torch's SDPA 75.5, `jax.nn` 379; at 256 tokens torch is 1.4 times as fast, at 2,048 to
16,384 it is 1.1 to 1.3 times. 8,192 tokens in documents of 1,024: 4.5 times as fast as one document. 32,768 tokens: 449
MiB of temporaries. Since then, `--case T16384` (5 rounds): a window of 1,024 takes 1.26 s and none 6.97 s, 5.5 times.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from experiments.benchmarks.attention_peers import IMPLEMENTATIONS, Case, Implementation, ours
from lm.capabilities import Capabilities

PASSES = {"forward": 1, "both": 3.5}  # and their FLOPs in those of the forward pass
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
TOGETHER = 0.02  # seconds of calls in a row on a GPU or TPU: waiting for every call would count the waiting too
MINUTES = 8  # of a GPU or TPU, after which no case starts
MEMORY = "Temporaries of ours, forward and backward"  # of cases that are compiled and not run


def cases(platform: str) -> dict[str, list[Case]]:
    """Return a platform's cases by the title of their table, those that matter most first."""
    if platform == "cpu":
        f32 = partial(Case, dtype="float32")
        long, longer = partial(f32, 1, 8192, 8, 8, 64), partial(f32, 1, 16384, 8, 8, 64)
        return {
            "Causal": [f32(2, 1024, 8, 8, 64), f32(8, 256, 6, 6, 64), f32(1, 4096, 8, 8, 64), f32(1, 2048, 8, 8, 128)],
            "Full": [f32(1, 4096, 8, 8, 64, causal=False)],
            "Grouped queries": [f32(1, 2048, 8, 2, 64)],
            "Packed documents beside one": [long(document=1024), long()],
            "A window beside none": [longer(window=1024), longer()],
            MEMORY: [f32(1, 32768, 8, 8, 64)],
        }
    sizes = [(16384 // T, T, 2048 // H, 2048 // H, H) for H in (128, 64) for T in (2048, 4096, 8192, 16384)]
    return {
        "Causal": [Case(*size) for size in sizes],
        "Grouped queries": [Case(2, 8192, 16, 4, 128)],
        "Packed documents": [Case(2, 8192, 16, 16, 128, document=1024)],
        "A window": [Case(1, 16384, 16, 16, 128, window=1024)],
        "Full": [Case(*size, causal=False) for size in sizes],
    }


class Worker:
    """One process's side; a library's subclass brings `about`, `arrays`, `passes`, `wait` and `to_numpy`."""

    _case: Case | None = None

    def _prepared(self, case: Case, name: str) -> dict[str, Callable]:
        """Return an implementation's two passes as functions without arguments, which have run once."""
        if case != self._case:  # one case at a time in memory
            self._case, self._passes, self._arrays = case, {}, self.arrays(case)
        if name not in self._passes:
            one, (q, k, v, dout) = IMPLEMENTATIONS[name], self._arrays
            if one.repeats_keys:
                k, v = (x.repeat(case.N // case.K, 2) for x in (k, v))
            arrays = [x.swapaxes(1, 2) if one.heads_first else x for x in (q, k, v, dout)]
            self._passes[name] = self.passes(case, one, arrays)
            self.wait([call() for call in self._passes[name].values()])
        return self._passes[name]

    def prepare(self, case: Case, name: str) -> None:
        self._prepared(case, name)

    def check(self, case: Case, name: str, folder: str) -> float:
        """Return the greatest error of output and gradients, relative to the norm of what they should be."""
        errors = []
        for i, result in enumerate(self._prepared(case.small, name)["both"]()):
            expected, result = np.load(os.path.join(folder, f"{i}.npy")), self.to_numpy(result)
            result = result.swapaxes(1, 2) if IMPLEMENTATIONS[name].heads_first else result
            result = result.reshape(*expected.shape[:3], -1, case.H).sum(3)  # gradients of a repeated key add up
            errors.append(np.linalg.norm(result - expected) / np.linalg.norm(expected))
        return float(np.max(errors))  # NaN, if there is one

    def seconds(self, case: Case, name: str, which: str, target: float) -> float:
        """Return the median time of a call in a turn of `target` seconds."""
        call = self._prepared(case, name)[which]

        def timed(calls: int) -> float:
            start = time.perf_counter()
            for _ in range(calls):
                results = call()
            self.wait(results)
            return (time.perf_counter() - start) / calls

        first, times, end = timed(1), [], time.perf_counter() + target
        if first >= target:
            return first
        calls = 1 if self.about["platform"] == "cpu" else max(1, round(TOGETHER / first))
        while len(times) < 3 or time.perf_counter() < end:
            times.append(timed(calls))
        return statistics.median(times)


class Jax(Worker):
    def __init__(self):
        import jax

        from lm.parallel.devices import detect

        here, self._jax, self.wait = detect(), jax, jax.block_until_ready
        self.about = {"platform": here.platform, "device": here.device_kind, "version": f"jax {jax.__version__}"}

    def arrays(self, case: Case) -> list:
        return [self._jax.numpy.asarray(x, case.dtype) for x in case.draw()]

    def passes(self, case: Case, one: Implementation, arrays: list) -> dict[str, Callable]:
        (q, k, v, dout), ids_BT, (forward, both) = arrays, self._ids(case), self._jitted(one.build(case))
        return {"forward": lambda: forward(q, k, v, ids_BT), "both": lambda: both(q, k, v, dout, ids_BT)}

    def to_numpy(self, x) -> np.ndarray:
        return np.asarray(x, np.float32)

    def _ids(self, case: Case):
        ids_BT = np.tile(np.arange(case.T, dtype=np.int32) // (case.document or case.T), (case.B, 1))
        return self._jax.numpy.asarray(ids_BT) if case.document else None

    def _jitted(self, attend: Callable) -> tuple[Callable, Callable]:
        def both(q, k, v, dout, ids_BT):
            out, pull_back = self._jax.vjp(lambda q, k, v: attend(q, k, v, ids_BT), q, k, v)
            return out, *pull_back(dout)

        return self._jax.jit(attend), self._jax.jit(both)

    def reference(self, case: Case, folder: str) -> None:
        """Save what the small version's output and gradients should be."""
        arrays, (_, both) = self.arrays(case.small), self._jitted(ours("reference", case.small))
        with self._jax.default_matmul_precision("highest"):
            results = both(*(x.astype("float32") for x in arrays), self._ids(case.small))
        for i, result in enumerate(results):
            np.save(os.path.join(folder, f"{i}.npy"), result)

    def temporaries(self, case: Case) -> int:
        """Return the bytes that our two passes take beside their arguments and results."""
        q, k = (self._jax.ShapeDtypeStruct((case.B, case.T, n, case.H), case.dtype) for n in (case.N, case.K))
        _, both = self._jitted(ours("auto", case))
        return both.lower(q, k, k, q, None).compile().memory_analysis().temp_size_in_bytes


class Torch(Worker):
    def __init__(self, platform: str):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch, self._device = torch, {"cpu": "cpu", "gpu": "cuda"}[platform]
        torch.empty(1, device=self._device)  # raises where torch does not have this device
        self.about = {"platform": platform, "version": f"torch {torch.__version__}"}

    def arrays(self, case: Case) -> list:
        return [self._torch.from_numpy(x).to(self._device, getattr(self._torch, case.dtype)) for x in case.draw()]

    def passes(self, case: Case, one: Implementation, arrays: list) -> dict[str, Callable]:
        attend, (q, k, v, dout) = one.build(case, self._device), (x.contiguous() for x in arrays)
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]

        def both():
            out = attend(*inputs)
            return out.detach(), *self._torch.autograd.grad(out, inputs, dout)

        return {"forward": lambda: attend(q, k, v), "both": both}

    def to_numpy(self, x) -> np.ndarray:
        return x.float().cpu().numpy()

    def wait(self, results) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


def work(side: str, platform: str) -> None:
    """Be one side: do what each line of stdin asks for, first to start."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what libraries print
    for line in sys.stdin:
        do, case, options = json.loads(line)
        try:
            if do == "start":
                worker = Jax() if side == "jax" else Torch(platform)
                answer = {"result": worker.about}
            else:
                answer = {"result": getattr(worker, do)(Case(**case), **options)}
        except Exception as error:  # a library or device that is not there, a shape that a peer refuses
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """A worker process, idle unless it is asked; one that dies is started anew."""

    def __init__(self, python: str, *arguments: str):
        self._command = [python, os.path.abspath(__file__), "--worker", *arguments]
        self._start()

    def _start(self) -> None:
        # JAX would take most of a GPU's memory; half of it leaves room for torch.
        env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", **os.environ, "PYTHONPATH": os.getcwd()}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(self._command, **pipes, text=True, env=env)
        self.started = self.ask("start")

    def ask(self, do: str, case: Case | None = None, **options) -> dict:
        """Return {"result": …} or {"failed": one line}."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([do, case and dataclasses.asdict(case), options]) + "\n")
            self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return json.loads(line)
        code = self._process.wait()
        if do != "start":
            self._start()
        return {"failed": f"its process ended with {code}; its error is above"}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(case: Case, platform: str, sides: dict[str, Side], args: argparse.Namespace, checked: dict) -> dict:
    """Check and time every implementation of a case; `checked` keeps the answers of the checks."""
    auto = f"ours, {Capabilities(platform).attention_for('auto', case.call)}"
    names = [name for name, one in IMPLEMENTATIONS.items() if platform in one.platforms and one.side in sides]
    able, failed = [name for name in names if IMPLEMENTATIONS[name].supports(case)], {}

    def ask(names: list[str], do: str, **options) -> dict[str, dict]:
        """Return the answers by name; both sides work at the same time."""

        def ask_side(side: str) -> list[tuple[str, dict]]:
            own = [name for name in names if IMPLEMENTATIONS[name].side == side]
            return [(name, sides[side].ask(do, case, name=name, **options)) for name in own]

        with ThreadPoolExecutor() as pool:
            return dict(pair for pairs in pool.map(ask_side, sides) for pair in pairs)

    def leave_out(answers: dict[str, dict]) -> None:
        failed.update({name: answer["failed"] for name, answer in answers.items() if "failed" in answer})
        able[:] = [name for name in able if name not in failed]

    if new := [name for name in able if (case.small, name) not in checked]:
        with tempfile.TemporaryDirectory() as folder:
            if "failed" in (answer := sides["jax"].ask("reference", case, folder=folder)):
                sys.exit(f"attention: {case.name}: the reference failed: {answer['failed']}")
            checked.update({(case.small, name): answer for name, answer in ask(new, "check", folder=folder).items()})
    leave_out({name: checked[case.small, name] for name in able})
    errors = {name: checked[case.small, name]["result"] for name in able}
    leave_out({name: {"failed": f"error {e:.1e}"} for name, e in errors.items() if not e < LIMITS[case.dtype]})
    leave_out(ask(able, "prepare"))
    turns = {name: {which: [] for which in PASSES} for name in names}
    for number in range(args.rounds):
        for name in able[:: 1 if number % 2 else -1]:
            for which in PASSES:
                if platform == "cpu":
                    time.sleep(0.2)  # what the other side's threads still spin
                leave_out(answer := ask([name], "seconds", which=which, target=args.seconds))
                turns[name][which].append(answer[name].get("result"))

    def measured(name: str, which: str) -> dict:
        row = {"seconds": statistics.median(turns[name][which]), "rounds": turns[name][which]}
        row["tflops"] = 4e-12 * PASSES[which] * case.H * case.N * case.B * case.pairs / row["seconds"]
        if auto in able and name != auto:
            pairs = zip(turns[name][which], turns[auto][which], strict=True)
            row["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
        return row

    rows = {name: {which: measured(name, which) for which in PASSES} if name in able else None for name in names}
    return {"case": case.name, "rows": rows, "errors": errors, "failed": failed}


HEADER = (
    "| case | implementation | error | forward, ms | TFLOP/s | forward+backward, ms | TFLOP/s | "
    "ours is x times as fast: forward, both |\n|---|---|---|---|---|---|---|---|"
)


def table_row(result: dict, name: str) -> str:
    """Return an implementation's results as a row under `HEADER`."""
    cells = [result["case"], name, f"{result['errors'][name]:.1e}" if name in result["errors"] else "-"]
    if (row := result["rows"][name]) is None:
        cells += ["failed" if name in result["failed"] else "-"] * 5
    else:
        cells += [f"{number:.3g}" for one in row.values() for number in (1e3 * one["seconds"], one["tflops"])]
        cells.append(", ".join(f"{one['ratio']:.2f}" for one in row.values() if "ratio" in one))
    return f"| {' | '.join(cells)} |"


def run(groups: dict[str, list[Case]], platform: str, sides: dict[str, Side], args: argparse.Namespace) -> list[dict]:
    """Print a table for each group of cases; return the results."""
    results, checked, end = [], {}, time.monotonic() + (math.inf if platform == "cpu" else 60 * MINUTES)
    for title, group in groups.items():
        print(f"### {title}\n" + (f"\n{HEADER}" if title != MEMORY else ""), flush=True)
        failures = []
        for case in group:
            if time.monotonic() > end:
                result = {"case": case.name, "failed": {"all": f"not run, {MINUTES} minutes being over"}}
            elif title == MEMORY:
                answer = sides["jax"].ask("temporaries", case)
                result = {"case": case.name, "failed": {"ours": answer["failed"]} if "failed" in answer else {}}
                result["temporaries"] = answer.get("result")
                print(f"{case.name}: {(result['temporaries'] or math.nan) / 2**20:,.1f} MiB", flush=True)
            else:
                result = compare(case, platform, sides, args, checked)
                print("\n".join(table_row(result, name) for name in result["rows"]), flush=True)
            failures += [f"- {name}, {case.name}: failed: {why}" for name, why in result["failed"].items()]
            results.append(result)
        print("\n".join(["", *failures, ""] if failures else [""]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and numpy")
    parser.add_argument("--case", action="append", default=[], help="part of the names of cases to run (default: all)")
    parser.add_argument("--rounds", type=int, help="turns of each implementation (default: 5 on a CPU, else 3)")
    parser.add_argument("--seconds", type=float, help="of a turn, about (default: 1 on a CPU, else 0.1)")
    parser.add_argument("--list", action="store_true", help="name this device's cases and implementations, and end")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    if any(number is not None and not number > 0 for number in (args.rounds, args.seconds)):
        parser.error("--rounds and --seconds must be greater than 0")
    if shutil.which(args.torch_python) is None:
        parser.error(f"--torch-python: there is no program {args.torch_python}")
    cores, sides = len(os.sched_getaffinity(0)), {"jax": Side(sys.executable, "jax", "any")}
    try:
        if "failed" in sides["jax"].started:
            sys.exit(f"attention: JAX does not start: {sides['jax'].started['failed']}")
        here, groups = sides["jax"].started["result"], {}
        platform, about = here["platform"], f"{here['device']}, {cores} cores, {here['version']}"
        for title, group in cases(platform).items():
            if chosen := [case for case in group if not args.case or any(part in case.name for part in args.case)]:
                groups[title] = chosen
        if not groups:
            parser.error(f"no case has a name with {' or '.join(map(repr, args.case))}; see --list")
        if args.list:
            names = [name for name, one in IMPLEMENTATIONS.items() if platform in one.platforms]
            print("\n".join([*(case.name for group in groups.values() for case in group), "", *names]))
            return
        args.rounds = args.rounds or (5 if platform == "cpu" else 3)
        args.seconds = args.seconds or (1.0 if platform == "cpu" else 0.1)
        if os.getloadavg()[0] > cores / 2:
            print(f"attention: a busy machine (load {os.getloadavg()[0]:.1f}): not figures to keep", file=sys.stderr)
        if platform != "tpu":
            sides["torch"] = Side(args.torch_python, "torch", platform)
            if "failed" in (started := sides["torch"].started):
                print(f"Without torch: {started['failed']}\n")
                sides.pop("torch").close()
            else:
                about += f", {started['result']['version']}"
        results = run(groups, platform, sides, args)
        print(f"On {about}; {args.rounds} rounds, turns of {args.seconds:g} s.\n")
        print(json.dumps({"device": about, "rounds": args.rounds, "turn": args.seconds, "results": results}))
        if any(name.startswith("ours") for result in results for name in result["failed"]):
            sys.exit(1)
    finally:
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
