"""One run of training, from a resolved config to what came of it: data, folder, step, hooks and loop.

`lm train` does one; a sweep does many in one process, and those that differ in traced inputs alone share their
compiled programs (`Shared`).
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from lm.checkpoint.run_folder import read_run_info
from lm.commands import common, eval_tasks
from lm.commands.claiming import check_folder_is_shared, check_hosts_agree, claim_folder, run_info
from lm.config import Config
from lm.errors import ConfigError, UsageError
from lm.resolve import fingerprint, with_vocabulary
from lm.storage import exists, is_remote, join, locked, make_folder, read_text, write_atomic


class Shared:
    """What runs of one process may share: the mesh, and per program the step, the evaluator and the sampler."""

    def __init__(self):
        self._made: dict[Any, Any] = {}

    def once(self, kind: str, config: Config, make: Callable[[], Any]) -> Any:
        """Return what `make()` returned for the first config whose program is the same as this one's."""
        key = kind, _program(config)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def step(self, config: Config) -> Any:
        """Return the step of the config's program (`lm.train.step.BuiltStep`); None: no run of it has come so far."""
        return self._made.get(("step", _program(config)))

    def step_bytes(self, config: Config) -> int | None:
        """Return a device's bytes in a step of the config: state, batch and temporaries; None: not compiled here."""
        built = self.step(config)
        found = [program.memory_analysis() for program in built.programs.values()] if built else []
        sizes = [m.argument_size_in_bytes + m.temp_size_in_bytes for m in found if m is not None]
        return max(sizes, default=None)


def _program(config: Config) -> Config:
    from lm.train.step import program_config

    return program_config(config)


def run_training(
    config: Config,
    workdir: str,
    *,
    config_file: str,
    interrupts,
    shared: Shared | None = None,
    console: Callable[[str, int], Any] | None = None,
    with_report: bool = True,
    began: float | None = None,
) -> dict[str, Any] | None:
    """Train a run, or continue the one in its folder, and return what came of it; None on all hosts but the first.

    Args:
      config: resolved for the devices that are here.
      workdir: the run's folder.
      config_file: where the config comes from; the run is named after it.
      interrupts: `lm.train.interrupts.Interrupts`, installed.
      shared: with other runs of this process.
      console: makes what shows records from the folder and the number of steps; None: `lm.train.console.Console`.
      with_report: write `report.html`.
      began: when, on the monotonic clock; None: now.

    Raises:
      Preempted: stopped by a signal after saving.
      ConfigError, UsageError, LmError: as `lm.data.prepare.prepare` and `lm.train.loop.train`; the folder holds
        another run.
    """
    start = time.monotonic()
    if is_remote(workdir) and not workdir.startswith(("gs://", "s3://")):
        raise UsageError(f"--workdir {workdir}: expected a local folder, gs:// or s3://.")
    init_from = init_fingerprint(config, workdir)
    make_folder(workdir)

    from lm import hosts
    from lm.parallel.devices import detect
    from lm.parallel.mesh import make_mesh
    from lm.plan.gate import check_fits
    from lm.report.run import write_run_report
    from lm.train.console import Console, SilentConsole, compact
    from lm.train.loop import train
    from lm.train.step import build_step
    from lm.train.timeline import Timeline

    timeline = Timeline(start if began is None else began)
    shared = shared or Shared()
    with contextlib.ExitStack() as stack:
        hosts.first_alone(lambda: stack.enter_context(locked(workdir)))
        num_steps = config.optimizer.num_steps
        shown = stack.enter_context((console or Console)(workdir, num_steps) if hosts.is_first() else SilentConsole())
        # 1. Data: prepared once, kept in the cache.
        tasks = eval_tasks.tasks_of(config.eval)  # refused now, not after the data is prepared
        config, dataset, loader, validation = open_inputs(config, shown.note)
        check_fits(config, detect())

        # 2. The run's folder: a new one, or one of the same config.
        identity = fingerprint(config, manifest_hash=dataset.hash, init_from=init_from)
        info = {**run_info(config, identity, dataset, config_file), "init_from": init_from}
        check_hosts_agree(info)
        hosts.first_alone(lambda: claim_folder(workdir, config, info, dataset))
        check_folder_is_shared(workdir)

        # 3. The step and the hooks, then the loop.
        with timeline.recorded(workdir if hosts.is_first() else None, identity, shown.note):
            built = shared.once("step", config, lambda: build_step(config, make_mesh(config.parallel)))
            shown.note(
                f"{config_file}: {compact(info['num_parameters'])} parameters on {info['devices']}; "
                f"{compact(loader.tokens_per_epoch)} training tokens ({info['data']['source']}), {loader.padding:.1%} padding"
                + ("" if built.programs else "; compiling")
            )
            if loader.mixture:
                shown.note(_mixture_line(loader, num_steps))
            state = train(
                config,
                built,
                loader,
                workdir,
                console=shown,
                hooks=[
                    *_hooks(config, built, dataset, validation, workdir, shown, shared),
                    *eval_tasks.hooks(config, built, dataset.tokenizer, tasks),
                ],
                initial_params=initial_params(config, built),
                interrupts=interrupts,
                timeline=timeline,
                peak_flops=detect().peak_flops(config.precision.compute),
                meta={"fingerprint": identity},
            )
            loader.check()  # a short run may be done before a large corpus is hashed

        # 4. What came of it.
        def result() -> dict[str, Any]:
            page = write_run_report(workdir) if with_report else None
            return _result(workdir, info, int(state.step), time.monotonic() - start, page)

        found = hosts.first_alone(result)
        if found:
            shown.summary(_summary(found))
        return found


def open_inputs(config: Config, note: Callable[[str], None]) -> tuple[Config, Any, Any, Any]:
    """Return a config with its vocabulary, its data set, training batches and validation batches (None: no such split).

    Data is prepared once and kept in the cache.
    """
    from lm import hosts
    from lm.data.dataset import open_data
    from lm.data.loader import Loader
    from lm.data.prepare import prepare

    progress = common.data_progress(note)
    dataset = hosts.first_then_all(lambda: open_data(prepare(config.data, progress=progress), config.data.verify))
    loader = Loader.of_config(config, dataset)
    check_tokenizer(config, dataset)
    validation = _validation_batches(config, dataset)
    return with_vocabulary(config, dataset.vocab_size), dataset, loader, validation


def _mixture_line(loader, num_steps: int) -> str:
    rows = loader.mixture.counts(loader.rows_consumed(num_steps))
    epochs, total = loader.domain_epochs(num_steps), sum(rows.values())
    stages = f" in {len(loader.mixture.stages)} stages" if len(loader.mixture.stages) > 1 else ""
    parts = (f"{domain} {count / total:.1%} ({epochs[domain]:.2f} epochs)" for domain, count in rows.items())
    return f"mixture{stages}: {', '.join(parts)}"


def _summary(result: dict[str, Any]) -> dict[str, str]:
    from lm.train.console import compact, duration

    bits, mfu = result["bits_per_byte"], result["mfu"]
    was_stopped = (result["attempts"] or 0) > 1
    return {
        "validation": f"{bits:.4f} bits per byte" if bits else "no validation",
        "parameters": compact(result["num_parameters"]),
        "tokens": compact(result["tokens"]),
        "tokens/s": compact(result["tokens_per_second"]),
        "MFU": "unknown chip" if mfu is None else f"{mfu:.1%}",
        "wall time": duration(result["seconds"]),
        **({"goodput": f"{result['goodput']:.1%} over {result['attempts']} attempts"} if was_stopped else {}),
        "report": result["report"] or "-",
    }


def init_fingerprint(config: Config, workdir: str) -> str | None:
    """Return the fingerprint of the run that training starts from; once begun, the run itself knows it."""
    if not config.init_from:
        return None
    if exists(join(workdir, "config.json")) and not exists(join(config.init_from, "config.json")):
        return read_run_info(workdir).get("init_from")
    return read_run_info(config.init_from)["fingerprint"]


def check_tokenizer(config: Config, dataset) -> None:
    """Refuse to start from parameters whose token ids mean other strings.

    Raises:
      ConfigError: `init_from` was trained with another tokenizer.
    """
    from lm.tokenizer import load_tokenizer

    path = join(config.init_from or "", "tokenizer.tiktoken")
    if config.init_from and exists(path) and load_tokenizer(path).sha256 != dataset.tokenizer.sha256:
        raise ConfigError(
            f'config.init_from="{config.init_from}" was trained with another tokenizer; set config.data.tokenizer="{path}".'
        )


def initial_params(config: Config, built):
    if not config.init_from:
        return None

    def restore():
        from lm.checkpoint.store import Checkpoints

        source = Checkpoints(join(config.init_from, "checkpoints"), warn=common.note)
        return source.restore({"params": built.state.params}).items["params"]

    return restore


def _validation_batches(config: Config, dataset):
    """Open (and so check) the validation split; None if there is none."""
    from lm.data.windows import EvalBatches

    if "validation" not in dataset.splits:
        return None
    return EvalBatches.of_split(
        dataset,
        "validation",
        sequence_length=config.data.sequence_length,
        batch_size=config.eval.batch_size
        or config.parallel.stage * config.data.batch_size // config.optimizer.accumulation_steps,
        stride=config.eval.stride or config.data.sequence_length,
        max_tokens=config.eval.tokens,
    )


def evaluator_of(config: Config, built, shared: Shared):
    """Return the evaluator of a config's program."""
    from lm.evaluate import LossEvaluator
    from lm.parallel.local import local_model

    def make():
        return LossEvaluator(local_model(config, built.mesh, micro_batches=built.mesh.shape["stage"]))

    return shared.once("evaluator", config, make)


def _hooks(config: Config, built, dataset, validation, workdir: str, console, shared: Shared) -> list:
    """Validation and samples, as the loop's hooks."""
    from lm import hosts
    from lm.evaluate.breakdown import break_down
    from lm.infer import Generator, SamplingConfig
    from lm.train.loop import Hook

    hooks, tokenizer = [], dataset.tokenizer
    if validation is not None:
        stride = config.eval.stride or config.data.sequence_length
        evaluator = evaluator_of(config, built, shared)
        shards, domains = dataset.counts("validation")["shards"], dataset.domains("validation")
        domain_of = [domain for shard, domain in zip(shards, domains, strict=True) for _ in range(shard["documents"])]

        def evaluate(step: int, params) -> Sequence[dict[str, Any]]:
            if None in domains or built.mesh.shape["stage"] > 1:  # a pipeline sums alone
                figures = evaluator(params, validation)
            else:
                found = break_down(evaluator, params, validation)
                figures = found.total()
                for domain, own in found.by_domain(domain_of).items():
                    figures |= {f"{name}/{domain}": own[name] for name in ("loss", "bits_per_byte") if own["tokens"]}
            return [{"kind": "eval", "step": step, "split": "validation", "stride": stride, **figures}]

        hooks.append(Hook(config.eval.every_steps, evaluate))
    if config.log.sample_prompts:
        generator = shared.once(
            f"sampler {tokenizer.sha256}",
            config,
            lambda: Generator(built.model, tokenizer.vocab_size, tokenizer.eot_id),
        )
        prompts = [tokenizer.encode_document(prompt).tolist() for prompt in config.log.sample_prompts]
        new_tokens = config.log.sample_tokens
        if config.model.positions == "learned":
            new_tokens = min(new_tokens, config.model.max_positions - max(map(len, prompts)))
        if new_tokens < 1:
            raise ConfigError(
                f"config.log.sample_prompts: a prompt fills all {config.model.max_positions} learned positions; shorten it."
            )

        def write_samples(step: int, params) -> Sequence[dict[str, Any]]:
            rows = generator(params, prompts, max_new_tokens=new_tokens, sampling=SamplingConfig(temperature=0.8))
            texts = [
                prompt + tokenizer.decode(ids) for prompt, ids in zip(config.log.sample_prompts, rows, strict=True)
            ]
            if not hosts.is_first():
                return []
            make_folder(join(workdir, "samples"))
            write_atomic(join(workdir, "samples", f"{step}.txt"), "\n\n".join(texts) + "\n")
            console.note(f"step {step} · sample: {texts[0]!r:.100}")
            return []

        hooks.append(Hook(config.log.sample_every_steps, write_samples))
    return hooks


def _result(workdir: str, info: dict, step: int, seconds: float, report: str | None) -> dict[str, Any]:
    from lm.report.goodput import breakdown
    from lm.train.metrics import read_metrics
    from lm.train.timeline import read_timeline

    records = read_metrics(workdir)
    evals = [r for r in records if r.get("kind") == "eval" and r["step"] == step]
    train = [r for r in records if r.get("kind", "train") == "train"]
    rates = [r["tokens_per_second"] for r in train if r.get("tokens_per_second")]
    mfus = [r["mfu"] for r in train if r.get("mfu")]
    sample = join(workdir, "samples", f"{step}.txt")
    time_spent = breakdown(read_timeline(workdir))
    return {
        "step": step,
        "loss": evals[-1]["loss"] if evals else None,
        "perplexity": evals[-1]["perplexity"] if evals else None,
        "bits_per_byte": evals[-1]["bits_per_byte"] if evals else None,
        "train_loss": train[-1]["loss"] if train else None,
        "tokens": train[-1]["tokens"] if train else 0,
        "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "mfu": sorted(mfus)[len(mfus) // 2] if mfus else None,
        "seconds": seconds,
        "goodput": time_spent.goodput if time_spent else None,
        "attempts": len(time_spent.attempts) if time_spent else None,
        "num_parameters": info["num_parameters"],
        "fingerprint": info["fingerprint"],
        "sample": read_text(sample) if exists(sample) else None,
        "report": report,
    }
