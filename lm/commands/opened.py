"""A run's checkpoint, opened on the devices of this machine."""

import argparse
import dataclasses
from typing import Any

from lm.axes import SHARDED_AXES
from lm.commands.common import find_extensions_in, note, require_positive
from lm.commands.startup import setup_jax
from lm.config import Config
from lm.errors import UsageError
from lm.resolve import resolve
from lm.storage import join
from lm.train.run_folder import read_run_info


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A trained model, ready to use on the devices of this machine."""

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


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say which weights of which run: what `open_checkpoint` reads."""
    parser.add_argument("--checkpoint", required=required, metavar="DIR", help="a run's folder")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest that can be read)")
    parser.add_argument(
        "--weights",
        choices=("ema", "params"),
        help="the moving average of the parameters, or the parameters (default: ema if the run has it)",
    )
    parser.add_argument(
        "--average", type=int, metavar="N", help="the mean of the parameters of the newest N checkpoints"
    )


def open_checkpoint(args: argparse.Namespace) -> OpenedRun:
    """Open what `add_checkpoint_arguments` asks for."""
    require_positive(args, "average")
    return open_run(args.checkpoint, args.step, weights=args.weights, average=args.average)


def open_run(
    workdir: str, step: int | None = None, *, weights: str | None = None, average: int | None = None
) -> OpenedRun:
    """Open a run's checkpoint on whatever devices there are, whatever mesh wrote it.

    Matmuls run in the compute type, also where the run was trained with float8.

    Args:
      workdir: the run's folder.
      step: None: the newest checkpoint that can be read.
      weights: `params`, or `ema`: their moving average, in f32; None: `ema` if the run keeps one.
      average: instead, the mean of the parameters of this many checkpoints, up to `step`, in f32.

    Raises:
      UsageError: no run, no checkpoint, not that step, no moving average, or too few checkpoints.
      DamagedFileError: the checkpoint cannot be read.
    """
    info = read_run_info(workdir)
    find_extensions_in(info.get("config_folder", "."))
    jax = setup_jax(info["config"]["data"].get("cache"))
    from lm.checkpoint.average import restore_average
    from lm.checkpoint.store import Checkpoints
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh, parameter_shardings
    from lm.tokenizer import load_tokenizer
    from lm.train.step import build_model

    plain = info["config"]
    plain["parallel"] = {"data": -1}
    plain["model"] |= {"attention": "auto", "experts": "auto", "remat": "none"}  # there is no backward pass here
    plain["precision"]["matmul"] = "default"
    rows, devices = plain["data"]["batch_size"] // plain["optimizer"]["accumulation_steps"], jax.device_count()
    plain["data"]["batch_size"] = max(rows - rows % devices, devices)  # a micro-batch that these devices can share
    plain["optimizer"]["accumulation_steps"] = 1
    plain["data"]["stages"] = ()
    plain["eval"]["batch_size"] = None
    config = resolve(plain, devices=jax.device_count(), capabilities=detect())
    has_ema = config.optimizer.ema_decay is not None
    if weights == "ema" and average:
        raise UsageError("--average is the mean of the parameters themselves; leave out --weights ema.")
    if weights == "ema" and not has_ema:
        raise UsageError(f'--weights ema: the run in "{workdir}" keeps no moving average (config.optimizer.ema_decay).')
    mesh = make_mesh(config.parallel)
    model = build_model(config, mesh)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = parameter_shardings(mesh, shapes, SHARDED_AXES)

    def targets(dtype=None):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s), shapes, shardings)

    checkpoints = Checkpoints(join(workdir, "checkpoints"), warn=note)
    tokenizer = load_tokenizer(join(workdir, "tokenizer.tiktoken"))
    if average:
        params, steps = restore_average(checkpoints, targets(), average, step=step, warn=note)
        return OpenedRun(config, info, model, mesh, params, tokenizer, steps[-1], "average", steps)
    weights = weights or ("ema" if has_ema else "params")
    item, wanted = ("extra/ema", targets("float32")) if weights == "ema" else ("params", targets())
    restored = checkpoints.restore({item: wanted}, step=step)
    return OpenedRun(config, info, model, mesh, restored.items[item], tokenizer, restored.step, weights)
