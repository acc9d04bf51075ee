"""A run's checkpoint, opened on the devices of this machine: for `lm eval`, `lm generate` and notebooks."""

import argparse
import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.axes import SHARDED_AXES
from lm.checkpoint.layout import WEIGHTS
from lm.checkpoint.run_folder import locate, read_run_info
from lm.commands import common
from lm.commands.common import find_extensions_in, note, require_positive
from lm.commands.startup import give_back_freed_memory, give_back_large_buffers, setup_jax
from lm.config import Config
from lm.errors import UsageError
from lm.resolve import resolve
from lm.storage import join

_LARGE = 1 << 30  # bytes of parameters
_SHORTEST = 16  # tokens; shorter inputs are padded to it, longer ones to powers of two: few shapes, few compilations


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A trained model, ready to use on the devices of this machine.

    Programs are compiled once per shape; inputs are padded to few shapes.
    """

    config: Config
    info: dict[str, Any]  # config.json
    model: Any
    mesh: Any
    params: Any
    tokenizer: Any
    step: int  # of the checkpoint, or of the newest that was averaged
    weights: str  # what `params` are: `params`, `ema` (their moving average) or `average`
    averaged: tuple[int, ...] = ()  # steps of the checkpoints whose mean `params` are

    def describe_weights(self) -> str:
        """Return what was opened in words, e.g. `checkpoint of step 400, moving average`."""
        if self.averaged:
            return f"average of checkpoints {', '.join(map(str, self.averaged))}"
        return f"checkpoint of step {self.step}" + (", moving average" if self.weights == "ema" else "")

    def logits(self, ids: Any) -> np.ndarray:
        """Return the next-token logits at each position, f32 `[T, V]` or `[B, T, V]`.

        V is `config.model.vocab_size`; ids from the tokenizer's vocabulary on are padding.

        Args:
          ids: token ids `[T]` or `[B, T]`, each row one document; start it with `tokenizer.eot_id`, as in training
            (`tokenizer.encode_document(text)` does).

        Raises:
          UsageError: no tokens, an id that there is not, or more of them than the model has positions.
        """
        from lm import hosts

        given = np.asarray(ids)
        if given.ndim not in (1, 2) or not given.size or given.dtype.kind not in "iu":
            raise UsageError(f"logits of {given.dtype}{list(given.shape)}: expected token ids [T] or [B, T].")
        B, T = given.reshape(-1, given.shape[-1]).shape
        if given.min() < 0 or given.max() >= self.config.model.vocab_size:
            raise UsageError(f"token ids {given.min()} to {given.max()}: there are {self.config.model.vocab_size}.")
        if self.config.model.positions == "learned" and self.config.model.max_positions < T:
            raise UsageError(f"{T} tokens: the model has {self.config.model.max_positions} learned positions.")
        tokens_BT = np.zeros((self._rows(B), self._length(T)), np.int32)
        tokens_BT[:B, :T] = given.reshape(B, T)
        segment_ids_BT = np.zeros_like(tokens_BT)  # 0: padding
        segment_ids_BT[:B, :T] = 1
        logits_BTV = hosts.fetch(self._logits(self.params, tokens_BT, segment_ids_BT))[:B, :T]
        return logits_BTV.reshape(*given.shape, -1)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Return the continuation of a prompt, or of each of several, without the prompt.

        Args:
          prompt: text; continued from the start of a document.
          max_new_tokens: of each continuation, which may end earlier.
          temperature: 0: the most likely token.
          top_k: draw from the k most likely tokens; 0: all.
          top_p: draw from the smallest set of this mass.
          seed: of the draws; each prompt has its own.

        Raises:
          UsageError: a value out of range, or more tokens than the model has positions.
        """
        from lm.infer.sampling import SamplingConfig

        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens}: expected 1 or more.")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = [self.tokenizer.encode_document(text).tolist() for text in prompts]
        sampling = SamplingConfig(temperature, top_k, top_p)
        rows = self.generator(self.params, ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        texts = [self.tokenizer.decode(row) for row in rows]
        return texts[0] if isinstance(prompt, str) else texts

    def loss(self, text: str | Sequence[str], *, stride: int | None = None) -> dict[str, float]:
        """Return `loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens` and `bytes`, as `lm eval`.

        Args:
          text: a document, or several.
          stride: new tokens per window, for documents longer than one; None: half the window.

        Raises:
          UsageError: there is no text, or the stride is no part of the window.
        """
        from lm.data.windows import EvalBatches

        texts = [text] if isinstance(text, str) else list(text)
        whole = self.config.data.sequence_length
        if not any(texts):
            raise UsageError("there is no text to score.")
        if stride is not None and not 1 <= stride <= whole:
            raise UsageError(f"stride={stride}: expected 1 to {whole}, the window's length.")
        # A document of n tokens has n targets: the last one's is the separator.
        lengths = [len(self.tokenizer.encode_document(text)) for text in texts]
        length = min(self._length(max(lengths)), whole)
        stride = min(stride or max(1, whole // 2), length)
        windows = sum(max(1, -(-tokens // stride)) for tokens in lengths)
        batches = EvalBatches.of_texts(
            self.tokenizer,
            texts,
            sequence_length=length,
            batch_size=self._rows(min(windows, self.config.data.batch_size)),
            stride=stride,
        )
        return self.evaluator(self.params, batches)

    def _length(self, tokens: int) -> int:
        longest = self.config.model.max_positions if self.config.model.positions == "learned" else None
        length = max(_SHORTEST, 1 << (tokens - 1).bit_length())
        return min(length, longest) if longest else length

    def _rows(self, rows: int) -> int:
        """Return a number of rows that the devices can share."""
        return self.mesh.size * (1 << (-(-rows // self.mesh.size) - 1).bit_length())

    @functools.cached_property
    def evaluator(self):
        """The loss of this model on evaluation batches: `evaluator(params, batches)`."""
        from lm.evaluate import LossEvaluator
        from lm.parallel.local import local_model

        return LossEvaluator(local_model(self.config, self.mesh))

    @functools.cached_property
    def generator(self):
        """The `Generator` of this model."""
        from lm.infer.generate import Generator

        return Generator(self.model, self.tokenizer.vocab_size, self.tokenizer.eot_id)

    @functools.cached_property
    def _logits(self):
        import jax
        import jax.numpy as jnp

        from lm.kernels.linear import in_compute_type

        def logits(params, tokens_BT, segment_ids_BT):
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None, :], tokens_BT.shape)
            hidden_BTD = self.model.hidden(params, tokens_BT, positions_BT, segment_ids_BT).x_BTD
            return self.model.logits(params, hidden_BTD).astype(jnp.float32)

        return jax.jit(in_compute_type(logits, self.config.precision.compute))


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, required: bool = True, average: bool = True) -> None:
    """Add the options that say which weights of which run: what `open_checkpoint` reads, `--average` if that is had."""
    parser.add_argument(
        "--checkpoint", required=required, metavar="DIR", help="a run's folder, or one step: runs/tiny/checkpoints/400"
    )
    parser.add_argument(
        "--step", type=common.step, help="which checkpoint, or best (default: the newest that can be read)"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "params"),
        help="the moving average of the parameters, or the parameters (default: ema if the run has it)",
    )
    if average:
        parser.add_argument(
            "--average", type=int, metavar="N", help="the mean of the parameters of the newest N checkpoints"
        )


def chosen_weights(asked: str | None, config: Config, workdir: str) -> str:
    """Return which weights of a run to use, `params` or `ema`: the ones asked for, else `ema` if the run keeps one.

    Raises:
      UsageError: a moving average is asked for, and the run keeps none.
    """
    has_ema = config.optimizer.ema_decay is not None
    if asked == "ema" and not has_ema:
        raise UsageError(f'--weights ema: the run in "{workdir}" keeps no moving average (config.optimizer.ema_decay).')
    return asked or ("ema" if has_ema else "params")


def open_checkpoint(args: argparse.Namespace) -> OpenedRun:
    """Open what `add_checkpoint_arguments` asks for."""
    require_positive(args, "average")
    return open_run(args.checkpoint, args.step, weights=args.weights, average=args.average)


def open_run(
    path: str, step: int | str | None = None, *, weights: str | None = None, average: int | None = None
) -> OpenedRun:
    """Open a run's checkpoint on whatever devices there are, whatever mesh wrote it (`lm.open`).

    Matmuls run in the compute type, also where the run was trained with float8.

    Args:
      path: the run's folder, or the folder of one step.
      step: or `best`, by its validation; None: the newest checkpoint that can be read.
      weights: `params`, or `ema`: their moving average, in f32; None: `ema` if the run keeps one.
      average: instead, the mean of the parameters of this many checkpoints, up to `step`, in f32.

    Raises:
      UsageError: no run, no checkpoint, not that step, no moving average, or too few checkpoints.
      DamagedFileError: the checkpoint cannot be read, or another run saved it.
    """
    workdir, folder, step = locate(path, step)
    info = read_run_info(workdir)
    find_extensions_in(info.get("config_folder", "."))
    jax = setup_jax(info["config"]["data"].get("cache"))
    from lm.checkpoint.average import restore_average
    from lm.checkpoint.store import Checkpoints
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh, parameter_shardings
    from lm.tokenizer import load_tokenizer
    from lm.train.step import build_model

    plain = copy.deepcopy(info["config"])
    plain["parallel"] = {"data": -1}
    plain["model"] |= {"attention": "auto", "experts": "auto", "remat": "none"}  # there is no backward pass here
    plain["precision"]["matmul"] = "default"
    rows, devices = plain["data"]["batch_size"] // plain["optimizer"]["accumulation_steps"], jax.device_count()
    plain["data"]["batch_size"] = max(rows - rows % devices, devices)  # a micro-batch that these devices can share
    plain["optimizer"]["accumulation_steps"] = 1
    plain["data"]["stages"] = ()
    plain["eval"]["batch_size"] = None
    config = resolve(plain, devices=jax.device_count(), capabilities=detect())
    if weights == "ema" and average:
        raise UsageError("--average is the mean of the parameters themselves; leave out --weights ema.")
    weights = chosen_weights(weights, config, workdir)
    mesh = make_mesh(config.parallel)
    model = build_model(config, mesh)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = parameter_shardings(mesh, shapes, SHARDED_AXES)
    if sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes)) >= _LARGE:
        give_back_large_buffers()

    def targets(dtype=None):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s), shapes, shardings)

    checkpoints = Checkpoints(folder, verify=config.checkpoint.verify, fingerprint=info["fingerprint"], warn=note)
    tokenizer = load_tokenizer(join(workdir, "tokenizer.tiktoken"))
    if average:
        params, steps = restore_average(checkpoints, targets(), average, step=step, warn=note)
        return OpenedRun(config, info, model, mesh, params, tokenizer, steps[-1], "average", steps)
    item, wanted = WEIGHTS[weights], targets("float32" if weights == "ema" else None)
    restored = checkpoints.restore({item: wanted}, step=step)
    give_back_freed_memory()
    return OpenedRun(config, info, model, mesh, restored.items[item], tokenizer, restored.step, weights)
