"""Training speed on this machine's CPU beside PyTorch eager: tokens per second of whole steps.

    python -m experiments.benchmarks.cpu_training --torch-python path/to/python-with-torch

The same GPT-2 on both sides: learned positions, LayerNorm and biases, tanh-GELU, tied head, causal attention,
AdamW with decay on kernels and embeddings, global-norm clipping at 1, all in f32. Ours is the training loop's
step: `build_step`, state donated, batches and hyperparameters placed by the prefetching thread, metrics fetched
a step late. PyTorch's is what a careful user writes in eager mode: fused scaled_dot_product_attention and, where
`torch.optim.AdamW` has it for the CPU, its fused update.

Each side is a process of its own. They take turns of a few seconds, one idle while the other works, in rounds
that alternate who goes first, so that a noisy neighbour meets both; the ratio is the median of the rounds'
ratios. On a machine that others load, wall times mean little and OpenMP's threads spin: put `taskset -c 0` before
the command, and compare the CPU times of one thread each. Parameters must be equal in number, and both first losses ln V. Prints a table in Markdown, then one
JSON object. `--config.a.b=v` changes our config. Needs `pip install -e '.[peer]'`, here or, with --torch-python,
in an environment that needs nothing but torch and numpy.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np

SHAPES = {
    "L4 D128 N4 T64 B12 V65": {"L": 4, "D": 128, "N": 4, "T": 64, "B": 12, "V": 65},
    "L6 D384 N6 T256 B8 V65": {"L": 6, "D": 384, "N": 6, "T": 256, "B": 8, "V": 65},
    "L6 D384 N6 T256 B8 V8192": {"L": 6, "D": 384, "N": 6, "T": 256, "B": 8, "V": 8192},
}
LEARNING_RATE, B1, B2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
WARMUP_STEPS = 3  # before the first turn; the first compiles


def random_tokens(shape: dict[str, int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a step's inputs and targets, int64 [B, T], the same on both sides."""
    tokens_BU = np.random.default_rng(step).integers(0, shape["V"], (shape["B"], shape["T"] + 1))
    return tokens_BU[:, :-1], tokens_BU[:, 1:]


class Ours:
    """Our side: `run(steps)` trains, `parameters` and `loss` (of the newest step) tell of the model."""

    def __init__(self, shape: dict[str, int], overrides: list[tuple[str, str]]):
        from lm.commands.common import resolve_here
        from lm.config import apply_overrides, default
        from lm.model.flops import parameter_counts
        from lm.optim import hyperparameters
        from lm.parallel.mesh import make_mesh, place_batch, replicated
        from lm.presets import preset
        from lm.train.step import build_step

        config = default()
        config.model.update(preset("gpt2"))
        config.model.num_layers, config.model.d_model, config.model.d_ff = shape["L"], shape["D"], 4 * shape["D"]
        config.model.num_heads = config.model.num_kv_heads = shape["N"]
        config.model.vocab_size, config.model.max_positions = shape["V"], shape["T"]
        config.data.sequence_length, config.data.batch_size = shape["T"], shape["B"]
        config.data.document_mask = False
        config.optimizer.schedule, config.optimizer.warmup_steps = "constant", 0
        config.optimizer.learning_rate, config.optimizer.b1, config.optimizer.b2 = LEARNING_RATE, B1, B2
        config.optimizer.epsilon, config.optimizer.weight_decay = EPSILON, WEIGHT_DECAY
        config.optimizer.clip_norm = CLIP_NORM
        apply_overrides(config, overrides)
        config = resolve_here(config)  # as `lm train` does: the CPU's devices, malloc's settings, the layers' loop
        import jax

        mesh = make_mesh(config.parallel)
        self._step = build_step(config, mesh)
        self._state, self._done, self._block = self._step.init(), 0, jax.block_until_ready
        self.parameters, self.loss = parameter_counts(config.model)["total"], math.nan
        self.threads = len(os.sched_getaffinity(0))

        def inputs(step: int):
            def build(rows, columns):
                inputs_BT, targets_BT = random_tokens(shape, step)
                ones_BT = np.ones_like(inputs_BT)
                positions_BT = np.tile(np.arange(shape["T"]), (shape["B"], 1))
                arrays = {"inputs_BT": inputs_BT, "targets_BT": targets_BT, "segment_ids_BT": ones_BT}
                arrays |= {"positions_BT": positions_BT, "target_bytes_BT": ones_BT}
                arrays = {name: a[rows][:, columns].astype(np.int32) for name, a in arrays.items()}
                return arrays | {"weights_BT": ones_BT[rows][:, columns].astype(np.float32)}

            scalars = {name: np.float32(v) for name, v in hyperparameters(config.optimizer, step).items()}
            return place_batch(mesh, (1, shape["B"], shape["T"]), build), jax.device_put(scalars, replicated(mesh))

        self._inputs = inputs

    def run(self, steps: int) -> None:
        from lm.data.prefetch import Prefetcher

        metrics = None
        with Prefetcher(self._inputs, self._done, self._done + steps) as batches:
            for _, (batch, hparams) in batches:
                self._state, newest = self._step.step(self._state, batch, hparams)
                if metrics is not None:
                    float(metrics["loss"])
                metrics = newest
        self._block(self._state)
        self._done, self.loss = self._done + steps, float(metrics["loss"])


class Torch:
    """PyTorch's side, with the same contract."""

    def __init__(self, shape: dict[str, int]):
        import torch
        from torch import nn
        from torch.nn import functional

        self._torch, self._functional, self._shape, self._done, self.loss = torch, functional, shape, 0, math.nan
        self.threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        D, N, T, V = shape["D"], shape["N"], shape["T"], shape["V"]

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
                self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
                self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

            def forward(self, x):
                q, k, v = (a.unflatten(-1, (N, D // N)).transpose(1, 2) for a in self.qkv(self.norm1(x)).chunk(3, -1))
                attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + self.out(attended.transpose(1, 2).flatten(2))
                return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

        class GPT2(nn.Module):
            def __init__(self):
                super().__init__()
                self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
                self.blocks, self.norm = nn.ModuleList(Block() for _ in range(shape["L"])), nn.LayerNorm(D)

            def forward(self, inputs):
                x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1]))
                for block in self.blocks:
                    x = block(x)
                return functional.linear(self.norm(x), self.tokens.weight)

        self._model = GPT2()
        parameters = list(self._model.parameters())
        for parameter in parameters:
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        options = {"lr": LEARNING_RATE, "betas": (B1, B2), "eps": EPSILON, "fused": True}
        self._optimizer = torch.optim.AdamW(groups, **options)
        self.parameters = sum(p.numel() for p in parameters)

    def run(self, steps: int) -> None:
        for step in range(self._done, self._done + steps):
            inputs, targets = map(self._torch.from_numpy, map(np.ascontiguousarray, random_tokens(self._shape, step)))
            logits = self._model(inputs)
            loss = self._functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
            self._optimizer.step()
            self.loss = loss.item()
        self._done += steps


def work(side: str, shape: dict[str, int], overrides: list[str]) -> None:
    """Be one side: tell of the model, then train as many steps as each line of stdin asks for."""
    answers, sys.stdout = sys.stdout, sys.stderr
    pairs = [tuple(text.removeprefix("--config.").split("=", 1)) for text in overrides]
    trainer = Ours(shape, pairs) if side == "ours" else Torch(shape)

    def answer(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    trainer.run(1)
    first_loss = trainer.loss
    trainer.run(WARMUP_STEPS - 1)
    answer(parameters=trainer.parameters, first_loss=first_loss, threads=trainer.threads)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.run(int(line))
        answer(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu_start)


class Side:
    """A worker process that trains when asked and is idle otherwise."""

    def __init__(self, side: str, python: str, name: str, overrides: list[str]):
        self._process = subprocess.Popen(
            [python, os.path.abspath(__file__), "--worker", side, "--shape", name, *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
        )
        self.about = self._read()

    def _read(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"cpu_training: a side ended early, with {self._process.wait()}; its error is above.")
        return json.loads(line)

    def train(self, steps: int) -> tuple[float, float]:
        """Train; return the wall time and the CPU time of all its threads, in seconds a step."""
        time.sleep(0.2)  # what the other side's threads still spin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer["seconds"] / steps, answer["cpu_seconds"] / steps

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(name: str, args: argparse.Namespace, overrides: list[str]) -> dict:
    """Measure both sides at one shape."""
    shape = SHAPES[name]
    sides = {
        "ours": Side("ours", sys.executable, name, overrides),
        "torch": Side("torch", args.torch_python, name, []),
    }
    try:
        counts = {side: process.about["parameters"] for side, process in sides.items()}
        if len(set(counts.values())) > 1:
            sys.exit(f"cpu_training: {name}: not the same model: {counts} parameters.")
        for side, process in sides.items():
            if abs(process.about["first_loss"] - math.log(shape["V"])) > 0.15:
                sys.exit(f"cpu_training: {name}: {side}'s first loss {process.about['first_loss']:.3f} is not ln V.")
        tokens = shape["B"] * shape["T"]
        steps = {side: max(1, round(args.seconds / process.train(3)[0])) for side, process in sides.items()}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        cpu: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(args.rounds):
            for side in list(sides)[:: 1 if number % 2 else -1]:
                seconds, cpu_seconds = sides[side].train(steps[side])
                rates[side].append(tokens / seconds)
                cpu[side].append(cpu_seconds)
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        return {
            "shape": name,
            "parameters": counts["ours"],
            "first_loss": {side: process.about["first_loss"] for side, process in sides.items()},
            "threads": {side: process.about["threads"] for side, process in sides.items()},
            "tokens_per_second": {side: statistics.median(values) for side, values in rates.items()},
            "step_milliseconds": {side: 1e3 * tokens / statistics.median(values) for side, values in rates.items()},
            "cpu_milliseconds": {side: 1e3 * statistics.median(values) for side, values in cpu.items()},
            "ratio": statistics.median(ratios),
            "rounds": {**rates, "ratio": ratios},
        }
    finally:
        for process in sides.values():
            process.close()


HEADER = (
    "| shape | parameters | ours, tokens/s | PyTorch eager, tokens/s | ours/PyTorch | step, ms | CPU time, ms |\n"
    "|---|---|---|---|---|---|---|"
)


def table_row(result: dict) -> str:
    """Return a result as a row under `HEADER`: medians, and in brackets the least and the most of the rounds."""

    def spread(name: str, form: str) -> str:
        values = result["rounds"][name]
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    def sides(name: str) -> str:
        return f"{result[name]['ours']:.0f} against {result[name]['torch']:.0f}"

    return (
        f"| {result['shape']} | {result['parameters']:,} | {spread('ours', ',.0f')} | {spread('torch', ',.0f')} | "
        f"**{spread('ratio', '.2f')}** | {sides('step_milliseconds')} | {sides('cpu_milliseconds')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and numpy")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn, about")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of the shapes (default: all)")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if wrong := [text for text in overrides if not text.startswith("--config.") or "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if args.worker:
        work(args.worker, SHAPES[args.shape[0]], overrides)
        return
    if os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2:
        print(
            f"cpu_training: the machine is busy (load {os.getloadavg()[0]:.1f}): not figures to keep", file=sys.stderr
        )
    print(HEADER, flush=True)
    results = []
    for name in args.shape or SHAPES:
        results.append(compare(name, args, overrides))
        print(table_row(results[-1]), flush=True)
    print()
    print(json.dumps({"results": results, "overrides": overrides}))


if __name__ == "__main__":
    main()
