"""A tiny run for the tests of the command line: its text, its config, and `lm` in a process of its own."""

import json
import os
import pathlib
import random
import subprocess
import sys

from tests.conftest import COMPILE_FAST

# One device, and less of LLVM's optimization: compiling is most of what these processes do.
XLA_FLAGS = f"{COMPILE_FAST} --xla_llvm_disable_expensive_passes=true"

REPOSITORY = pathlib.Path(__file__).parents[2]

CONFIG = '''
"""A model of one layer on made-up words."""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "text"
    config.data.path = {path!r}
    config.data.tokenizer_vocab_size = 300
    config.data.sequence_length = 32
    config.data.batch_size = 16
    config.data.workers = 1
    config.model.num_layers = 1
    config.model.d_model = 32
    config.model.num_heads = 2
    config.optimizer.learning_rate = 2e-2
    config.optimizer.warmup_steps = 2
    config.optimizer.num_steps = {num_steps}
    config.checkpoint.every_steps = 8
    config.eval.every_steps = 10
    config.eval.tokens = 512
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.log.sample_prompts = ()
    return config
'''


def write_text(path: pathlib.Path, words: int = 6000) -> pathlib.Path:
    """Write made-up prose, the same each time, of a few tens of KB."""
    draw = random.Random(0)
    lexicon = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(60)]
    path.write_text(" ".join(draw.choice(lexicon) for _ in range(words)))
    return path


def write_config(path: pathlib.Path, text: pathlib.Path, num_steps: int) -> pathlib.Path:
    path.write_text(CONFIG.format(path=str(text), num_steps=num_steps))
    return path


def start(*arguments: object, code: str | None = None, **environment: str) -> subprocess.Popen:
    """Start `lm` (or Python code) in a new process with one device, its output piped as text."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS, **environment}
    head = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lm"]
    return subprocess.Popen(
        [*head, *map(str, arguments)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return a process's exit code, stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def records(workdir: pathlib.Path, kind: str = "train") -> list[dict]:
    """Return the records of one kind in `metrics.jsonl`; a torn last line is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [r for r in map(json.loads, lines) if r.get("kind", "train") == kind]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
