"""Runs in one program: the records of runs alone, failures that stay their own, and who may be trained so."""

import dataclasses

import jax
import pytest

from lm.config import OptimizerConfig
from lm.data.build import build
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.data.windows import EvalBatches
from lm.errors import Preempted
from lm.evaluate import LossEvaluator
from lm.parallel.mesh import make_mesh
from lm.resolve import with_vocabulary
from lm.sweep.together import MAX_STEP_FLOPS, Member, pays, shared_part, train_together
from lm.train.interrupts import Interrupts
from lm.train.loop import Hook, train
from lm.train.metrics import JsonlSink, read_metrics
from lm.train.step import build_step
from tests.commands.runs import write_text
from tests.train.common import small_config

STEPS = 8
CLOCKS = ("seconds", "tokens_per_second", "mfu")
TINY = {
    "model.num_layers": "1",
    "model.d_model": "16",
    "model.num_heads": "2",
    "model.vocab_size": "None",
    "model.dropout": "0.1",
    "data.source": "text",
    "data.tokenizer_vocab_size": "300",
    "data.workers": "1",
    "data.sequence_length": "16",
    "data.batch_size": "4",
    "optimizer.num_steps": str(STEPS),
    "eval.every_steps": "4",
    "log.every_steps": "2",
    "log.tensorboard": "False",
    "log.sample_prompts": "()",
}


class Silent:
    def note(self, text):
        pass

    write = note


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Config, built step, loader, evaluator and validation batches."""
    text = write_text(tmp_path_factory.mktemp("together") / "words.txt", 1500)
    config = small_config(**(TINY | {"data.path": str(text)}))
    folder = str(tmp_path_factory.mktemp("data") / "shards")
    build(config.data, folder)
    dataset = open_data(folder)
    config = with_vocabulary(config, dataset.vocab_size)
    built = build_step(config, make_mesh(config.parallel, jax.devices()[:1]))
    validation = EvalBatches.of_split(
        dataset, "validation", sequence_length=16, batch_size=4, stride=16, max_tokens=128
    )
    return config, built, Loader(dataset, sequence_length=16, batch_size=4), LossEvaluator(built.local), validation


def with_inputs(config, **inputs):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **inputs))


def figures(workdir):
    """Return the records without what depends on the clock."""
    return [{name: value for name, value in r.items() if name not in CLOCKS} for r in read_metrics(str(workdir))]


def trained_together(setting, configs, folder, **options):
    _, built, loader, evaluator, validation = setting
    members = []
    for number, config in enumerate(configs):
        (folder / str(number)).mkdir()
        members.append(Member(config, [JsonlSink(str(folder / str(number)))]))
    train_together(built, members, loader, evaluator=evaluator, validation=validation, **options)
    return members


@pytest.mark.slow
def test_runs_together_write_what_each_writes_alone_and_a_failure_stays_its_own(setting, tmp_path):
    config, built, loader, evaluator, validation = setting
    configs = [
        config,
        with_inputs(config, learning_rate=1e30),
        with_inputs(config, learning_rate=3e-2, b1=0.8, weight_decay=0.0, clip_norm=None),
        with_inputs(config, learning_rate=1e-2, warmup_steps=4, schedule="linear", clip_norm=0.1),
    ]
    members = trained_together(setting, configs, tmp_path)

    def validate(step, params):
        about = {"kind": "eval", "step": step, "split": "validation", "stride": 16}
        return [about | evaluator(params, validation)]

    for number in (0, 2, 3):
        assert members[number].failure is None
        workdir, hook = tmp_path / f"alone{number}", Hook(4, validate)
        workdir.mkdir()
        train(configs[number], built, loader, str(workdir), console=Silent(), hooks=[hook])
        alone, together = figures(workdir), figures(tmp_path / str(number))
        assert len(alone) == 7 and [list(record) for record in alone] == [list(record) for record in together]
        for one, other in zip(alone, together, strict=True):
            one, other = ({k: v for k, v in r.items() if not isinstance(v, str)} for r in (one, other))
            assert other == pytest.approx(one, rel=1e-5), one["step"]
    losses = [figures(tmp_path / number)[-1]["loss"] for number in ("0", "2", "3")]
    assert len(set(losses)) == 3

    assert "at step" in members[1].failure and members[1].failure.startswith(("loss is", "grad_norm is"))
    failed = figures(tmp_path / "1")
    assert failed[-1]["nonfinite"] and failed[-1]["step"] < STEPS, "it writes nothing after that"


@pytest.mark.slow
def test_runs_that_all_fail_end_at_once_and_a_signal_stops_them(setting, tmp_path):
    hopeless = [with_inputs(setting[0], learning_rate=rate) for rate in (1e30, 1e32)]
    shown = []
    members = trained_together(setting, hopeless, tmp_path, progress=lambda done, total: shown.append(done))
    assert all(member.failure for member in members) and max(shown) < STEPS

    (tmp_path / "stopped").mkdir()
    interrupts = Interrupts()
    interrupts.requested = "SIGTERM"
    with pytest.raises(Preempted, match="SIGTERM at step 1"):
        trained_together(setting, [setting[0]] * 2, tmp_path / "stopped", interrupts=interrupts)


def test_only_runs_that_differ_in_inputs_of_the_step_are_trained_together(setting):
    config, built, loader, *_ = setting
    others = [
        dataclasses.replace(config, seed=1),
        with_inputs(config, num_steps=STEPS + 1),
        with_inputs(config, ema_decay=0.9),
        dataclasses.replace(config, data=dataclasses.replace(config.data, packing="best_fit")),
        dataclasses.replace(config, eval=dataclasses.replace(config.eval, every_steps=2)),
    ]
    for other in others:
        with pytest.raises(ValueError, match="inputs alone"):
            train_together(built, [Member(config, []), Member(other, [])], loader)
    assert shared_part(with_inputs(config, learning_rate=1.0)) == shared_part(config)
    assert shared_part(config).optimizer.learning_rate == OptimizerConfig.learning_rate


def test_small_runs_on_one_device_without_samples_or_sinks_pay(setting):
    config = setting[0]
    assert pays(config)
    rows = int(MAX_STEP_FLOPS / (6 * 16 * 384))  # of 16 tokens, whose head alone has 16 x 384 parameters
    for section, change in (
        ("data", {"batch_size": rows}),
        ("data", {"stages": ((4, rows, 16),)}),
        ("parallel", {"data": 2}),
        ("log", {"sample_prompts": ("a",)}),
        ("eval", {"tasks": ("piqa",)}),
        ("precision", {"compute": "float16"}),
    ):
        changed = dataclasses.replace(getattr(config, section), **change)
        assert not pays(dataclasses.replace(config, **{section: changed})), change
