"""What a sweep over the step's inputs costs beside its training: compilations, folders; and runs in one program.

    python experiments/benchmarks/sweep_compilation.py compile
    python experiments/benchmarks/sweep_compilation.py together --size tiny

`compile` trains 8 learning rates in one process, as a sweep's worker does, without a cache of compiled programs, and
prints what each run compiled and the wall time of all against that of their steps and validations alone: at most 1.1.
`together` trains 8 runs in turn and in one program (`lm.sweep.together`), in alternation, and prints the ratio of their
times from the first step to the last, without compilation; losses must agree within 1e-5 relative.

Two CPU cores shared with other jobs (load 6 to 13, so take the ratios, not the times):

    compile   step compiled once, nothing in runs 2 to 8; 798 s in all, 1.077 of the runs without compilation;
              95.5 % of runs 2 to 8 is steps and validations
    together  tiny     26 M FLOPs in a step   in turn / together: median 1.80, of the fastest turns 1.51
              wider   139 M                   1.67, 1.67
              small  7251 M                   0.93, 0.93 (2 rounds)

Of the programs alone, without batches, hyperparameters and records, 8 in one are 1.25 to 1.33 times as fast at the tiny
size, and slower at that of experiments/sweeps/small.py (0.66 to 0.81): most of the gain is what the host does once
instead of 8 times, and `lm.sweep.together.pays` is the line that follows.
"""

import argparse
import collections
import json
import os
import tempfile
import time

NUM_RUNS = 8
SIZES = {  # layers, width, heads, tokens per row, rows, vocabulary, steps
    "tiny": (1, 32, 2, 32, 4, 512, 200),
    "wider": (1, 64, 2, 64, 4, 512, 100),
    "deeper": (2, 64, 2, 64, 8, 512, 50),
    "small": (4, 128, 4, 128, 8, 2048, 10),
}


class Silent:
    """A console that shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, record):
        pass

    note = summary = write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compile", "together"))
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of `together`")
    parser.add_argument("--rounds", type=int, default=5, help="of `together`, after one that is not counted")
    parser.add_argument("--steps", type=int, help="of each run of `compile`; experiments/sweeps/small.py's without")
    args = parser.parse_args()
    from lm.train.interrupts import Interrupts

    with tempfile.TemporaryDirectory() as folder, Interrupts().installed() as interrupts:
        if args.what == "compile":
            show_compilations(folder, interrupts, args.steps)
        else:
            show_together(folder, interrupts, args.size, args.rounds)


def configs_of(overrides: dict) -> list:
    """Return `experiments/sweeps/small.py` with 8 learning rates, resolved for this machine."""
    from lm.commands import common
    from lm.config import set_fields

    configs = []
    for number in range(NUM_RUNS):
        config = common.load_config("experiments/sweeps/small.py")
        rate = {"optimizer.learning_rate": 1e-3 * 2 ** (number / 2)}
        set_fields(config, {"log.tensorboard": False, "log.sample_prompts": ()} | overrides | rate)
        configs.append(common.resolve_here(config))
    return configs


def train_alone(config, workdir: str, interrupts, shared) -> None:
    from lm.commands.training import run_training

    run_training(
        config,
        workdir,
        config_file="experiments/sweeps/small.py",
        interrupts=interrupts,
        shared=shared,
        console=lambda *_: Silent(),
        with_report=False,
    )


def records(workdir: str) -> list[dict]:
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def seconds_of_steps(workdir: str) -> float:
    """Return the time from the end of the first step to the last, validations but the last included."""
    train = [record["seconds"] for record in records(workdir) if record.get("kind", "train") == "train"]
    return train[-1] - train[0]


def show_compilations(folder: str, interrupts, steps: int | None) -> None:
    configs = configs_of({"optimizer.num_steps": steps, "optimizer.warmup_steps": 1} if steps else {})
    import jax

    from lm.commands import training
    from lm.resolve import with_vocabulary

    jax.config.update("jax_enable_compilation_cache", False)
    compiled = collections.Counter()

    def listen(event: str, seconds: float, **_) -> None:
        if event.startswith("/jax/core/compile"):
            compiled.update({"seconds": seconds, "programs": "backend_compile" in event})

    jax.monitoring.register_event_duration_secs_listener(listen)
    shared, walls, steps_alone, of_runs = training.Shared(), [], [], []
    for number, config in enumerate(configs):
        before, start, workdir = compiled.copy(), time.perf_counter(), os.path.join(folder, str(number))
        train_alone(config, workdir, interrupts, shared)
        walls.append(time.perf_counter() - start)
        of_runs.append((compiled["programs"] - before["programs"], compiled["seconds"] - before["seconds"]))
        steps_alone.append(seconds_of_steps(workdir))
        print(
            f"run {number + 1}: {walls[-1]:.1f} s, of which steps and validations {steps_alone[-1]:.1f} s; "
            f"{of_runs[-1][0]} programs compiled in {of_runs[-1][1]:.1f} s",
            flush=True,
        )
    with open(os.path.join(folder, "0", "config.json")) as file:
        vocabulary = json.load(file)["config"]["model"]["vocab_size"]
    built = shared.step(with_vocabulary(configs[0], vocabulary))
    without = sum(walls) - sum(seconds for _, seconds in of_runs)
    print(
        f"programs of the training step: {len(built.programs)}; compiled in runs 2 to 8: {sum(n for n, _ in of_runs[1:])}"
    )
    print(f"all runs {sum(walls):.1f} s, {sum(walls) / without:.3f} of the runs without compilation ({without:.1f} s)")
    print(f"of runs 2 to 8 {sum(steps_alone[1:]) / sum(walls[1:]):.1%} is steps and validations")


def show_together(folder: str, interrupts, size: str, rounds: int) -> None:
    layers, width, heads, length, rows, vocabulary, steps = SIZES[size]
    configs = configs_of(
        {
            "model.num_layers": layers,
            "model.d_model": width,
            "model.num_heads": heads,
            "data.sequence_length": length,
            "data.batch_size": rows,
            "data.tokenizer_vocab_size": vocabulary,
            "optimizer.num_steps": steps,
            "optimizer.warmup_steps": 1,
            "eval.every_steps": steps,
            "eval.tokens": 4096,
            "checkpoint.every_steps": steps,
        }
    )
    from lm.commands import sweep_together
    from lm.commands.training import Shared
    from lm.model.flops import train_flops_per_token
    from lm.resolve import with_vocabulary

    shared, ratios, worst, per_step = Shared(), [], 0.0, []
    flops = train_flops_per_token(with_vocabulary(configs[0], vocabulary).model, length) * rows * length
    print(f"{size}: {flops / 1e6:.0f} M model FLOPs in a step of one run, {NUM_RUNS} runs", flush=True)
    for number in range(rounds + 1):
        alone = [os.path.join(folder, f"alone{number}-{run}") for run in range(NUM_RUNS)]
        together = [os.path.join(folder, f"together{number}-{run}") for run in range(NUM_RUNS)]
        options = {"config_file": "experiments/sweeps/small.py", "interrupts": interrupts, "shared": shared}
        if number % 2:
            sweep_together.train(configs, together, **options)
        for config, workdir in zip(configs, alone, strict=True):
            train_alone(config, workdir, interrupts, shared)
        if not number % 2:
            sweep_together.train(configs, together, **options)
        for workdirs in zip(alone, together, strict=True):
            for one, other in zip(*map(records, workdirs), strict=True):
                worst = max(worst, abs(one["loss"] - other["loss"]) / one["loss"])
        # A run's records together have its share of the time.
        seconds = [sum(map(seconds_of_steps, workdirs)) / (NUM_RUNS * (steps - 1)) for workdirs in (alone, together)]
        if number:
            ratios.append(seconds[0] / seconds[1])
            per_step.append(seconds)
            print(f"  a run's step {seconds[0] * 1e3:.2f} ms in turn, {seconds[1] * 1e3:.2f} ms together", flush=True)
    fastest = [min(values) for values in zip(*per_step, strict=True)]
    print(
        f"  in turn / together: median {sorted(ratios)[len(ratios) // 2]:.2f}, of the fastest turns "
        f"{fastest[0] / fastest[1]:.2f}; largest relative difference of a loss {worst:.1e}"
    )


if __name__ == "__main__":
    main()
