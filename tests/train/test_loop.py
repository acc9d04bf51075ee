"""The loop under a batch schedule: one program per shape, right figures, and an exact continuation."""

import dataclasses

import jax
import pytest

from lm.checkpoint.reader import CheckpointReader
from lm.data.build import build
from lm.data.loader import Loader
from lm.errors import ConfigError, Preempted
from lm.model.flops import train_flops_per_token
from lm.parallel.mesh import make_mesh
from lm.resolve import with_vocabulary
from lm.train.interrupts import Interrupts
from lm.train.loop import Hook, train
from lm.train.metrics import read_metrics
from lm.train.step import build_step
from tests.commands.runs import write_text
from tests.train.common import small_config

STEPS, STAGES = 9, ((0, 4, 8), (3, 8, 16), (7, 4, 8))
TOKENS = [32, 64, 96, 224, 352, 480, 608, 640, 672]  # after each step
LENGTHS = [8, 8, 8, 16, 16, 16, 16, 8, 8]
PEAK = 1e12


class Notes:
    """A console that keeps what it is told."""

    def __init__(self):
        self.notes, self.records = [], []

    def note(self, text):
        self.notes.append(text)

    def write(self, record):
        self.records.append(record)


class Counting:
    """A jitted function that counts its compilations, and cannot be called past them."""

    def __init__(self, function):
        self.function, self.shapes = function, []

    def lower(self, state, batch, hparams):
        self.shapes.append(batch["inputs_BT"].shape)
        return self.function.lower(state, batch, hparams)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Config, built step and loader of a run with a schedule."""
    config = small_config(
        **{
            "model.num_layers": "1",
            "model.activation": "relu2",
            "model.d_model": "16",
            "model.num_heads": "2",
            "model.vocab_size": "None",
            "data.source": "text",
            "data.path": str(write_text(tmp_path_factory.mktemp("loop") / "words.txt", 900)),
            "data.tokenizer_vocab_size": "300",
            "data.workers": "1",
            "data.sequence_length": "16",
            "data.batch_size": "8",
            "data.stages": str(STAGES),
            "optimizer.num_steps": str(STEPS),
            "log.every_steps": "1",
            "log.tensorboard": "False",
        }
    )
    folder = str(tmp_path_factory.mktemp("data") / "shards")
    build(config.data, folder)
    loader = Loader(folder, sequence_length=16, stages=config.data.schedule)
    config = with_vocabulary(config, loader.vocab_size)
    return config, build_step(config, make_mesh(config.parallel, jax.devices()[:1])), loader


def run(setting, workdir, stop_after=None, **changes):
    """Train; return the console and the shapes compiled. `stop_after`: asked to stop in that step's hook."""
    config, built, loader = setting
    config = dataclasses.replace(config, **changes)
    console, interrupts = Notes(), Interrupts()
    built = dataclasses.replace(built, step=Counting(built.step))

    def stop(step, params):
        if step == stop_after:
            interrupts.requested = "SIGTERM"
        return []

    options = {"console": console, "hooks": [Hook(1, stop)], "interrupts": interrupts, "peak_flops": PEAK}
    if stop_after is None:
        train(config, built, loader, str(workdir), **options)
    else:
        with pytest.raises(Preempted):  # the hook runs, then the loop reads the request after the next step
            train(config, built, loader, str(workdir), **options)
    return console, built.step.shapes


@pytest.fixture(scope="module")
def undisturbed(setting, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, *run(setting, workdir)


def numbers(workdir):
    """Return the records without what depends on the clock."""
    clocks = ("seconds", "tokens_per_second", "mfu")
    return [{name: value for name, value in r.items() if name not in clocks} for r in read_metrics(str(workdir))]


def test_each_batch_shape_is_compiled_once_and_announced_before(undisturbed):
    _, console, shapes = undisturbed
    assert shapes == [(1, 4, 8), (1, 8, 16)]  # the last stage is the first one's shape again
    assert [note for note in console.notes if "compiling" in note] == [
        "step 0: batch 4 x 8 tokens; compiling",
        "step 3: batch 8 x 16 tokens; compiling",
    ]


def test_tokens_epoch_rate_and_mfu_follow_the_schedule(setting, undisturbed):
    config, _, loader = setting
    records = read_metrics(str(undisturbed[0]))
    assert [r["tokens"] for r in records] == TOKENS
    rows = loader.rows_per_epoch
    assert [r["epoch"] for r in records] == [round(tokens / 16 / rows, 4) for tokens in TOKENS]
    assert records[0]["tokens_per_second"] is records[0]["mfu"] is None
    for record, length in list(zip(records, LENGTHS, strict=True))[1:]:
        per_token = record["mfu"] / record["tokens_per_second"] * PEAK * jax.device_count()
        assert per_token == pytest.approx(train_flops_per_token(config.model, length)), record["step"]


def test_an_interval_over_a_change_of_length_counts_each_tokens_own_flops(setting, tmp_path):
    config = setting[0]
    run(setting, tmp_path, log=dataclasses.replace(config.log, every_steps=4))
    records = {r["step"]: r for r in read_metrics(str(tmp_path))}
    assert sorted(records) == [1, 4, 8, 9]
    for step, tokens in ((4, {8: 64, 16: 128}), (8, {16: 384, 8: 32})):
        flops = sum(n * train_flops_per_token(config.model, length) for length, n in tokens.items())
        per_token = records[step]["mfu"] / records[step]["tokens_per_second"] * PEAK * jax.device_count()
        assert per_token == pytest.approx(flops / sum(tokens.values()))


def test_compiling_a_stage_does_not_count_in_its_rate(undisturbed):
    """A step of this model takes about a millisecond, compiling a tenth of a second at the least."""
    records = read_metrics(str(undisturbed[0]))
    between = {r["step"]: r["seconds"] - before["seconds"] for before, r in zip(records, records[1:], strict=False)}
    assert 128 / records[3]["tokens_per_second"] < between[4] / 2


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_run_stopped_at_a_stages_end_or_within_one_continues_bit_for_bit(setting, undisturbed, tmp_path, stop_after):
    workdir, _, _ = undisturbed
    stopped, _ = run(setting, tmp_path, stop_after)
    at = stopped.records[-1]["step"]
    assert at == stop_after + 1
    resumed, shapes = run(setting, tmp_path)
    assert resumed.notes[0] == f"resumed at step {at} of {STEPS}"
    assert len(shapes) == len(set(shapes))
    assert numbers(tmp_path) == numbers(workdir)


def test_a_run_whose_schedule_changed_is_refused(setting, tmp_path):
    config, built, loader = setting
    run(setting, tmp_path, stop_after=4)
    other = Loader(loader.dataset, sequence_length=16, stages=((0, 8, 16),))
    with pytest.raises(ConfigError, match="batch schedule changed"):
        run((config, built, other), tmp_path)


def test_a_run_whose_mixture_changed_is_refused(setting, tmp_path):
    class Mixed(Loader):
        mixture_hash = "0" * 64

    config, built, loader = setting
    mixed = Mixed(loader.dataset, sequence_length=16, stages=config.data.schedule, seed=config.seed)
    run((config, built, mixed), tmp_path, stop_after=4)
    data = CheckpointReader(str(tmp_path / "checkpoints" / "5")).json("data")
    assert data["mixture"] == Mixed.mixture_hash
    with pytest.raises(ConfigError, match="mixture of domains changed"):
        run(setting, tmp_path)


def test_a_task_with_the_validation_splits_name_is_not_taken_for_it(setting, tmp_path):
    config, built, loader = setting
    figures = {"eval": 2.0, "task": 1.0}

    def evaluate(step, params):
        return [{"kind": k, "step": step, "split": "validation", "bits_per_byte": v} for k, v in figures.items()]

    train(config, built, loader, str(tmp_path), console=Notes(), hooks=[Hook(STEPS, evaluate)])
    meta = CheckpointReader(str(tmp_path / "checkpoints" / str(STEPS))).json("meta")
    assert meta["bits_per_byte"] == figures["eval"]
