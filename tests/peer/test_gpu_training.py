"""The GPU training benchmark: on a CPU the same code runs, its figures are arithmetic, and its configs suit a GPU."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import gpu_training
from experiments.benchmarks.training_sides import Torch

pytestmark = pytest.mark.peer

# A stand-in for nanoGPT: what the benchmark asks of its model.py.
NANOGPT = """
import dataclasses
import torch

@dataclasses.dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.bias and not config.dropout
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, inputs, targets):
        logits = self.embedding(inputs) @ self.embedding.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.benchmarks.gpu_training", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_a_smoke_run_measures_and_knows_no_prediction_for_a_cpu():
    done = run("--smoke", "--rounds", "1", "--seconds", "0.01")
    assert done.returncode == 0, done.stderr
    gpt2, llama = json.loads(done.stdout.splitlines()[-1])["results"]
    for result in (gpt2, llama):
        assert done.stdout.count(f"| {result['model']} | 128 | blockwise | ") == 1
        assert result["tokens_per_second"] == pytest.approx(128 / result["step_seconds"])
        assert result["peak_bytes"]["compiled"] > 0
        assert {*result["predicted"].values(), *result["ratio"].values(), result["mfu"]} == {None}
    (ours,), (theirs,) = gpt2["peer"]["rounds"]["ours"], gpt2["peer"]["rounds"]["peer"]
    assert gpt2["peer"]["ratio"] == pytest.approx(ours / theirs)
    assert llama["peer"] is None


def test_without_a_gpu_it_says_so_in_one_line():
    done = run()
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "gpu_training: JAX finds no GPU here; --predict h200:1 and --smoke need none.\n"


def test_measured_is_divided_by_predicted():
    plan = {"remat": "none", "prediction": {"step_seconds": 0.5, "mfu": 0.4}}
    plan |= {"compiled": {"peak_bytes": 80}, "bytes_per_device": {"total": 40}}
    ours = {"plan": plan, "shape": {"B": 4, "T": 25}, "flops_per_token": 3e9, "peak_flops": 1e12}
    ours |= {"parameters": 1, "attention": "cudnn", "first_loss": 1.0}
    turns = [{"seconds": seconds, "peak_bytes": 60} for seconds in (9.0, 0.6, 0.4)]
    result = gpu_training.measured(ours, turns)
    assert result["ratio"] == pytest.approx({"step_seconds": 1.2, "peak_of_compiled": 0.75, "peak_of_formulas": 1.5})
    assert result["mfu"] == pytest.approx(3e9 * 100 / 0.6 / 1e12)


def test_sides_that_are_not_the_same_model_are_refused():
    class Other:
        def __init__(self, parameters, first_loss):
            self.about = {"parameters": parameters, "first_loss": first_loss}

    shape = {"V": 128, "D": 64}
    gpu_training.check_same("tiny", {"ours": Other(5, 4.85), "peer": Other(5, 4.87)}, shape)
    for other in (Other(6, 4.87), Other(5, 5.2)):
        with pytest.raises(SystemExit, match="tiny: "):
            gpu_training.check_same("tiny", {"ours": Other(5, 4.85), "peer": other}, shape)


def test_nanogpts_model_is_trained_with_its_own_optimizer(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    shape = {"L": 1, "D": 16, "N": 2, "T": 8, "B": 4, "V": 32}
    side = Torch(shape, mixed=True, nanogpt=str(tmp_path))
    assert side.parameters == 32 * 16
    side.run(1)
    first = side.loss
    side.run(2)
    assert side.loss != first


@pytest.mark.aot
def test_the_configs_take_cudnns_attention_and_fit_an_h100():
    results = gpu_training.predict("h100:1", gpu_training.CASES, [], compiled=False)
    assert [result["attention"] for result in results] == ["cudnn", "cudnn"]
    assert all(result["fits"] and result["prediction"]["mfu"] > 0.44 for result in results)
