"""Bits per byte of documents under one of our checkpoints: what `lm.corpus.perplexity` filters by.

Documents are packed into windows of one shape, so there is one compilation, however many come and of whatever length.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lm.axes import SHARDED_AXES
from lm.checkpoint.layout import WEIGHTS
from lm.checkpoint.run_folder import locate, read_run_info
from lm.data.windows import EvalBatches
from lm.evaluate.breakdown import break_down
from lm.evaluate.loss import LossEvaluator
from lm.model import Transformer
from lm.parallel.devices import detect
from lm.parallel.local import local_model
from lm.parallel.mesh import make_mesh, parameter_shardings
from lm.resolve import resolve
from lm.storage import join
from lm.tokenizer import Tokenizer, load_tokenizer

MAX_CHARACTERS = 20_000  # of a document that are scored


class DocumentScorer:
    """Scores texts: `scorer(texts) -> bits per byte of each`.

    Args:
      evaluator: of the model.
      params: its parameters.
      tokenizer: the model's.
      sequence_length: T, tokens in a window; windows of one document do not overlap.
      batch_size: B, windows in a batch; a multiple of what the mesh divides it into.
      max_characters: only the beginning of longer documents is scored; None: all of them.
    """

    def __init__(
        self,
        evaluator: LossEvaluator,
        params: Any,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        batch_size: int,
        max_characters: int | None = MAX_CHARACTERS,
    ):
        self._evaluator, self._params, self._tokenizer = evaluator, params, tokenizer
        self._shape = {"sequence_length": sequence_length, "batch_size": batch_size}
        self._max_characters = max_characters

    def __call__(self, texts: Sequence[str], progress: Callable[[int], None] = lambda done: None) -> list[float]:
        """Return each text's bits per byte, its end included; of a text without bytes infinity.

        Args:
          texts: a document each.
          progress: called with the number of batches done.
        """
        if not texts:
            return []
        batches = EvalBatches.of_texts(self._tokenizer, [text[: self._max_characters] for text in texts], **self._shape)
        sums = break_down(self._evaluator, self._params, batches, progress).documents
        return [nll / num_bytes / math.log(2) if num_bytes else math.inf for nll, _, num_bytes in sums.tolist()]


def open_scorer(
    path: str,
    step: int | str | None = None,
    *,
    max_characters: int | None = MAX_CHARACTERS,
    warn: Callable[[str], None] = lambda line: None,
) -> DocumentScorer:
    """Open a run's checkpoint on the devices of this process.

    Args:
      path: the run's folder, or the folder of one step.
      step: or `best`; None: the newest that can be read.
      max_characters: of a document that are scored.
      warn: is told of damaged checkpoints that were passed over.

    Raises:
      UsageError: no run, no checkpoint, or not that step.
      DamagedFileError: the checkpoint cannot be read, or another run saved it.
    """
    from lm.checkpoint.store import Checkpoints

    workdir, folder, step = locate(path, step)
    info = read_run_info(workdir)
    plain = copy.deepcopy(info["config"])
    plain["parallel"] = {"data": -1}
    plain["model"] |= {"attention": "auto", "experts": "auto", "remat": "none"}  # there is no backward pass here
    plain["precision"]["matmul"] = "default"
    rows, devices = plain["data"]["batch_size"] // plain["optimizer"]["accumulation_steps"], jax.device_count()
    plain["data"] |= {"batch_size": max(rows - rows % devices, devices), "stages": ()}
    plain["optimizer"]["accumulation_steps"] = 1
    plain["eval"]["batch_size"] = None
    config = resolve(plain, devices=devices, capabilities=detect())
    mesh = make_mesh(config.parallel)
    shapes = jax.eval_shape(Transformer(config.model, config.precision).init, jax.random.key(0))
    weights = "ema" if config.optimizer.ema_decay is not None else "params"

    def target(array, sharding):
        return jax.ShapeDtypeStruct(array.shape, "float32" if weights == "ema" else array.dtype, sharding=sharding)

    targets = jax.tree.map(target, shapes, parameter_shardings(mesh, shapes, SHARDED_AXES))
    checkpoints = Checkpoints(folder, verify=config.checkpoint.verify, fingerprint=info["fingerprint"], warn=warn)
    params = checkpoints.restore({WEIGHTS[weights]: targets}, step=step).items[WEIGHTS[weights]]
    return DocumentScorer(
        LossEvaluator(local_model(config, mesh)),
        params,
        load_tokenizer(join(workdir, "tokenizer.tiktoken")),
        sequence_length=config.data.sequence_length,
        batch_size=config.data.batch_size,
        max_characters=max_characters,
    )
