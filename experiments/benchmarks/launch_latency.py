"""How long a launched job takes to its first step, and from a killed process to its next one.

    python -m experiments.benchmarks.launch_latency --workdir runs/latency

`lm launch --target local` trains `experiments/tiny.py`, its data prepared; programs are compiled in the first start and read
from the cache afterwards. When a checkpoint is there, the training process is killed (SIGKILL), as often as --kills
says. A step is done when its record is in metrics.jsonl.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

SETTINGS = ("--config.log.every_steps=1", "--config.checkpoint.every_steps=10", "--config.eval.every_steps=10000")


def steps(workdir: pathlib.Path) -> int:
    """Return how many lines of records there are: a resumed run cuts some first, and then adds."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def wait(condition, what: str, seconds: float = 300.0) -> float:
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)
    return time.monotonic() - start


def training_processes(workdir: pathlib.Path) -> list[int]:
    """Return the processes that run `lm train` on the folder, their supervisors left out."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(workdir).encode() in words and b"train" in words and b"launch" not in words:
            found.append(int(entry.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    config = pathlib.Path(__file__).parents[1] / "tiny.py"
    lm = [sys.executable, "-m", "lm"]
    environment = {**os.environ, "LM_CACHE": str(args.workdir / "cache")}
    shutil.rmtree(args.workdir, ignore_errors=True)
    build = [*lm, "data", "build", "--config", str(config), "--out", str(args.workdir / "shards")]
    subprocess.run(build, check=True, capture_output=True, env=environment)
    run = args.workdir / "run"
    verb = ["train", "--config", str(config), "--workdir", str(run), *SETTINGS]
    verb += ["--config.data.source=shards", f"--config.data.path={args.workdir / 'shards'}"]
    start = time.monotonic()
    job = subprocess.Popen(
        [*lm, "launch", "--target", "local", "--", *verb], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        wait(lambda: steps(run) > 0, "the first step")
        print(
            f"from `lm launch` to the first step, nothing compiled before: {time.monotonic() - start:.1f} s", flush=True
        )
        for _ in range(args.kills):
            before = steps(run)
            wait(lambda before=before: steps(run) > before + 12, "a checkpoint")
            newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
            for pid in training_processes(run):
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            wait(lambda: not training_processes(run), "the end")
            wait(lambda newest=newest: steps(run) <= newest, "the records to be cut")
            known = steps(run)
            wait(lambda known=known: steps(run) > known, "the next step")
            print(f"from SIGKILL to the next step: {time.monotonic() - killed:.1f} s", flush=True)
    finally:
        job.terminate()
        job.wait()


if __name__ == "__main__":
    main()
