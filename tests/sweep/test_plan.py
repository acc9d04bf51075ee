"""From a sweep to its runs: what is matched, which runs share a program, what names them, what is refused."""

import dataclasses

import pytest

from lm.config import Config, set_fields, to_dict
from lm.errors import ConfigError, DamagedFileError, UsageError
from lm.resolve import resolve, with_vocabulary
from lm.sweep.algebra import Sweep, named, product, sweep
from lm.sweep.plan import calibration_of, make_plan, read_plan, training_flops, write_plan

VOCABULARY = 300


@dataclasses.dataclass(frozen=True)
class FakeData:
    """What a plan needs of prepared data."""

    hash: str = "h"
    vocab_size: int = VOCABULARY

    def counts(self, split):
        return {"tokens": 100, "bytes": self.vocab_size}


BASE = to_dict(Config())
SMALL = {
    "model.num_layers": 1,
    "model.d_model": 32,
    "model.num_heads": 2,
    "data.sequence_length": 16,
    "data.batch_size": 4,
    "optimizer.num_steps": 100,
    "optimizer.warmup_steps": 10,
}
set_fields(BASE, SMALL)


def plan_of(variants, baseline=None, *, base=BASE, data=lambda config: FakeData(), **options):
    rates = options.pop("rates", None)
    made = Sweep("tiny.py", variants, baseline or variants[0].name, **{"seeds": (0, 1), **options})
    return make_plan(made, base, data, name="test", rates=rates)


def by_variant(plan):
    return {run.variant: run for run in plan.runs if run.seed == 0}


def test_the_first_seed_of_all_variants_comes_before_the_second_of_any():
    plan = plan_of(sweep("model.activation", ["gelu", "swiglu"]))
    assert [(run.seed, run.variant) for run in plan.runs] == [(0, "gelu"), (0, "swiglu"), (1, "gelu"), (1, "swiglu")]
    assert all(run.config["seed"] == run.seed for run in plan.runs)
    assert len({run.id for run in plan.runs}) == 4


def test_runs_that_differ_in_inputs_of_the_step_alone_share_a_program():
    rates = sweep("optimizer.learning_rate", [1e-3, 2e-3])
    plan = plan_of(product(rates, sweep("model.activation", ["gelu", "swiglu"])))
    groups = {run.group for run in plan.runs}
    assert len(plan.runs) == 8 and len(groups) == 2
    assert {run.group for run in plan.runs if run.variant.endswith("gelu")} < groups


@pytest.mark.parametrize("match", ["tokens", "flops", "bytes", "seconds", "steps"])
def test_every_variant_gets_as_much_of_what_is_matched(match):
    variants = [*named("base"), *sweep("data.batch_size", [8]), *sweep("model.num_layers", [3])]
    variants += sweep("data.tokenizer_vocab_size", [600])
    data = lambda config: FakeData(vocab_size=config.data.tokenizer_vocab_size // 10)  # noqa: E731
    base = to_dict(Config())
    set_fields(base, {**SMALL, "data.tokenizer_vocab_size": 3000})
    rates = {"base": 100.0, "batch_size=8": 150.0, "num_layers=3": 50.0, "tokenizer_vocab_size=600": 100.0}
    runs = by_variant(plan_of(variants, base=base, data=data, match=match, rates=rates))
    steps = {name: run.steps for name, run in runs.items()}
    assert steps["base"] == 100
    assert steps["batch_size=8"] == {"seconds": 75, "steps": 100}.get(match, 50)
    if match == "flops":
        assert steps["tokenizer_vocab_size=600"] > 100, "a smaller head"
    else:
        assert steps["tokenizer_vocab_size=600"] == (500 if match == "bytes" else 100)
    if match == "flops":
        sized = {name: dict(runs[name].config) for name in ("base", "num_layers=3")}
        spent = {n: training_flops(with_vocabulary(resolve(config), 384), steps[n]) for n, config in sized.items()}
        assert spent["num_layers=3"] == pytest.approx(spent["base"], rel=0.5 / steps["num_layers=3"])
        assert steps["num_layers=3"] < 60
    else:
        assert steps["num_layers=3"] == (50 if match == "seconds" else 100)
    warmup = {name: run.config["optimizer"]["warmup_steps"] for name, run in runs.items()}
    assert warmup["batch_size=8"] == round(10 * steps["batch_size=8"] / 100)


def test_a_variant_that_sets_its_steps_keeps_them():
    plan = plan_of([*named("base"), *sweep("optimizer.num_steps", [30])], match="flops")
    assert by_variant(plan)["num_steps=30"].steps == 30


def test_an_id_names_config_and_data_and_nothing_else():
    kinds = sweep("model.activation", ["gelu", "swiglu"])
    ids = {run.id for run in plan_of(kinds).runs}
    quiet = to_dict(Config())
    set_fields(quiet, {**SMALL, "log.every_steps": 3, "checkpoint.every_steps": 7, "data.workers": 2})
    assert {run.id for run in plan_of(kinds, base=quiet).runs} == ids
    assert not ids & {run.id for run in plan_of(kinds, data=lambda config: FakeData(hash="other")).runs}
    larger = plan_of([*kinds, *sweep("model.num_layers", [2])], seeds=(0, 1, 2))
    assert ids < {run.id for run in larger.runs}, "what was run is not run again when a sweep grows"


@pytest.mark.parametrize(
    "variants, words",
    [
        (sweep("model.activatoin", ["gelu"]), "model.activatoin"),
        (sweep("model.activation", ["gelu", "swigloo"]), '"swigloo".*swiglu'),
        (sweep("model.num_heads", [2, 5]), '"num_heads=5".*divisor'),
        ([*named("a"), *named("b", {"log.every_steps": 3})], '"a" and "b" are the same config'),
    ],
)
def test_a_variant_that_cannot_run_is_refused_before_the_first_run(variants, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(variants)


def test_a_folder_holds_one_sweep_evaluated_in_one_way(tmp_path):
    plan, folder = plan_of(sweep("model.activation", ["gelu", "swiglu"])), str(tmp_path)
    write_plan(folder, plan)
    read = read_plan(folder)
    assert [run.id for run in read["runs"]] == [run.id for run in plan.runs] and read["baseline"] == "gelu"
    assert [resolve(run.config) for run in read["runs"]] == [resolve(run.config) for run in plan.runs]
    write_plan(folder, plan)  # the same again, and a larger one
    write_plan(folder, plan_of(sweep("model.activation", ["gelu", "swiglu", "relu2"])))
    with pytest.raises(ConfigError, match="another --workdir"):
        write_plan(folder, dataclasses.replace(plan, name="other"))
    other = to_dict(Config())
    set_fields(other, {**SMALL, "eval.tokens": 99})
    with pytest.raises(ConfigError, match="evaluated otherwise"):
        write_plan(folder, plan_of(sweep("model.activation", ["gelu", "swiglu"]), base=other))
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DamagedFileError, match="sweep.json"):
        read_plan(folder)
    with pytest.raises(UsageError, match="no sweep"):
        read_plan(str(tmp_path / "nothing"))


def test_speeds_are_measured_with_short_runs_of_one_seed_whatever_the_base_says():
    variants = [*named("x"), *sweep("model.num_layers", [2]), *sweep("optimizer.num_steps", [50])]
    short = calibration_of(Sweep("a.py", variants, "x", match="seconds", base={"optimizer.num_steps": 9}))
    assert short.match == "steps" and len(short.seeds) == 1
    assert [variant.name for variant in short.variants] == ["x", "num_layers=2"]
    assert all(run.steps == 40 for run in make_plan(short, BASE, lambda config: FakeData(), name="t").runs)
