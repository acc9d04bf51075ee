"""What trains in the training benchmarks: our step, and the same GPT-2 in PyTorch.

All follow `experiments.benchmarks.turns.Trainer`, on the same random tokens. PyTorch's side needs nothing but torch
and numpy.
"""

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Mapping

import numpy as np

LEARNING_RATE, B1, B2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
OPTIMIZER = {  # the same AdamW on our side, as overrides
    "optimizer.name": "adamw",
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": "0",
    "optimizer.learning_rate": str(LEARNING_RATE),
    "optimizer.b1": str(B1),
    "optimizer.b2": str(B2),
    "optimizer.epsilon": str(EPSILON),
    "optimizer.weight_decay": str(WEIGHT_DECAY),
    "optimizer.clip_norm": str(CLIP_NORM),
}


def random_tokens(shape: Mapping[str, int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a step's inputs and targets, int64 [B, T], the same on both sides."""
    tokens_BU = np.random.default_rng(step).integers(0, shape["V"], (shape["B"], shape["T"] + 1))
    return tokens_BU[:, :-1], tokens_BU[:, 1:]


class Ours:
    """The training loop's step: state donated, batches placed by the prefetching thread, metrics a step late."""

    def __init__(self, config):
        """Build the step of a config that is resolved for this machine, with its `vocab_size`."""
        import jax

        from lm.model.flops import parameter_counts
        from lm.parallel.mesh import make_mesh, place_batch, replicated
        from lm.train.step import build_step, step_scalars

        mesh = make_mesh(config.parallel)
        self._step = build_step(config, mesh)
        self._state, self._done, self._jax = self._step.init(), 0, jax
        self.parameters, self.loss = parameter_counts(config.model)["total"], math.nan
        self.about = {"parameters": self.parameters, "threads": len(os.sched_getaffinity(0))}
        shape = {"B": config.data.batch_size, "T": config.data.sequence_length, "V": config.model.vocab_size}
        micro = config.optimizer.accumulation_steps

        def inputs(step: int):
            def build(rows, columns):
                inputs_BT, targets_BT = random_tokens(shape, step)
                ones_BT = np.ones_like(inputs_BT)
                positions_BT = np.tile(np.arange(shape["T"]), (shape["B"], 1))
                arrays = {"inputs_BT": inputs_BT, "targets_BT": targets_BT, "segment_ids_BT": ones_BT}
                arrays |= {"positions_BT": positions_BT, "target_bytes_BT": ones_BT}
                arrays = {name: a[rows][:, columns].astype(np.int32) for name, a in arrays.items()}
                return arrays | {"weights_BT": ones_BT[rows][:, columns].astype(np.float32)}

            batch = place_batch(mesh, (micro, shape["B"] // micro, shape["T"]), build)
            return batch, jax.device_put(step_scalars(config, step), replicated(mesh))

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
        self._jax.block_until_ready(self._state)
        self._done, self.loss = self._done + steps, float(metrics["loss"])

    def peak_bytes(self) -> int | None:
        return (self._jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Torch:
    """PyTorch as a careful user writes it: eager in f32 on a CPU; compiled, bf16 autocast on a GPU.

    The model is nanoGPT's, or one of our own writing. Attention is fused (scaled_dot_product_attention) and so is
    AdamW's update, where `torch.optim.AdamW` has it for the device.
    """

    def __init__(
        self, shape: Mapping[str, int], *, device: str = "cpu", mixed: bool = False, nanogpt: str | None = None
    ):
        """Make the model and its optimizer.

        Args:
          shape: L, D, N, T, B, V.
          device: cpu or cuda.
          mixed: compile the model, and compute in bf16 by autocast; on a CPU the compiler only traces.
          nanogpt: a checkout of karpathy/nanoGPT, whose `model.py` has the model and the optimizer's groups.
        """
        import torch

        self._torch, self._shape, self._device, self._done, self.loss = torch, shape, device, 0, math.nan
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        if mixed:
            torch.set_float32_matmul_precision("high")  # what autocast leaves in f32 may use TF32, as nanoGPT has it
        self._model = (_nanogpt(nanogpt, shape) if nanogpt else _gpt2(shape)).to(device)
        parameters = list(self._model.parameters())
        if nanogpt:
            self._optimizer = self._model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, (B1, B2), device)
        else:
            groups = [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
                {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
            ]
            options = {"lr": LEARNING_RATE, "betas": (B1, B2), "eps": EPSILON, "fused": True}
            self._optimizer = torch.optim.AdamW(groups, **options)
        if mixed:
            self._model = torch.compile(self._model, backend="inductor" if device == "cuda" else "eager")
        self._context = torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext()
        self.parameters = sum(p.numel() for p in parameters)
        self.about = {"parameters": self.parameters, "threads": threads, "version": f"torch {torch.__version__}"}

    def _batch(self, step: int):
        pair = [self._torch.from_numpy(np.ascontiguousarray(a)) for a in random_tokens(self._shape, step)]
        if self._device == "cpu":
            return pair
        return [a.pin_memory().to(self._device, non_blocking=True) for a in pair]

    def run(self, steps: int) -> None:
        for step in range(self._done, self._done + steps):
            inputs, targets = self._batch(step)
            with self._context:
                _, loss = self._model(inputs, targets)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
            self._optimizer.step()
            if self._device == "cpu" or step + 1 == self._done + steps:  # a GPU would wait for the host at each
                self.loss = loss.item()
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        self._done += steps

    def peak_bytes(self) -> int | None:
        return self._torch.cuda.max_memory_allocated() if self._device == "cuda" else None


def _gpt2(shape: Mapping[str, int]):
    """Return GPT-2 as a module: (inputs, targets) -> (logits, loss)."""
    import torch
    from torch import nn
    from torch.nn import functional

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

        def forward(self, inputs, targets):
            x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model = GPT2()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model


def _nanogpt(folder: str, shape: Mapping[str, int]):
    """Return nanoGPT's model, with GPT-2's biases and without dropout."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", os.path.join(folder, "model.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"n_layer": shape["L"], "n_embd": shape["D"], "n_head": shape["N"]}
    sizes |= {"block_size": shape["T"], "vocab_size": shape["V"]}
    return module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=True))
