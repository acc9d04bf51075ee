"""The algebra of variants: what the combinations hold, what they are called, and what is refused."""

import pytest

from lm.errors import ConfigError
from lm.sweep.algebra import Choice, Sweep, Uniform, Variant, chain, named, product, sample, seeds, sweep, zipped

RATES = sweep("optimizer.learning_rate", [1e-3, 3e-3])
KINDS = sweep("model.activation", ["gelu", "swiglu"])


def test_a_variant_is_named_after_its_values():
    assert [variant.name for variant in product(KINDS, RATES)] == [
        "gelu learning_rate=0.001",
        "gelu learning_rate=0.003",
        "swiglu learning_rate=0.001",
        "swiglu learning_rate=0.003",
    ]
    assert sweep("model.window", [(64, None)])[0].name == "window=(64,None)"
    assert named("plain") == [Variant("plain", {})]


def test_product_has_every_combination_and_zipped_the_pairs():
    assert [dict(variant.overrides) for variant in product(KINDS, RATES)] == [
        {"model.activation": kind, "optimizer.learning_rate": rate}
        for kind in ("gelu", "swiglu")
        for rate in (1e-3, 3e-3)
    ]
    assert [dict(variant.overrides) for variant in zipped(KINDS, RATES)] == [
        {"model.activation": "gelu", "optimizer.learning_rate": 1e-3},
        {"model.activation": "swiglu", "optimizer.learning_rate": 3e-3},
    ]
    assert chain(KINDS, RATES) == [*KINDS, *RATES]
    assert product(named("", {"seed": 1}), KINDS)[0] == Variant("gelu", {"seed": 1, "model.activation": "gelu"})


def test_a_larger_sample_begins_with_the_smaller_one_and_stays_within_its_bounds():
    space = {
        "optimizer.learning_rate": Uniform(1e-4, 1e-1, log=True),
        "model.num_layers": Uniform(2, 4, integer=True),
        "model.activation": Choice(("gelu", "swiglu")),
    }
    many = sample(60, space)
    assert many[:5] == sample(5, space) != sample(5, space, seed=1)
    rates = [variant.overrides["optimizer.learning_rate"] for variant in many]
    assert 1e-4 <= min(rates) < 1e-3 and 1e-2 < max(rates) <= 1e-1  # evenly over the logarithm
    assert {variant.overrides["model.num_layers"] for variant in many} == {2, 3, 4}
    assert {variant.overrides["model.activation"] for variant in many} == {"gelu", "swiglu"}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: product(KINDS, KINDS), "model.activation"),
        (lambda: zipped(KINDS, RATES[:1]), "2, 1"),
        (lambda: Sweep("a.py", KINDS, "relu"), '"relu"'),
        (lambda: Sweep("a.py", [*KINDS, *KINDS], "gelu"), 'two variants "gelu"'),
        (lambda: Sweep("a.py", KINDS, "gelu", match="time"), "tokens, flops"),
        (lambda: Sweep("a.py", KINDS, "gelu", seeds=(1, 1)), "seeds"),
        (lambda: Sweep("a.py", KINDS, "gelu", metric="accuracy"), "bits_per_byte"),
        (lambda: Uniform(0, 1, log=True), "above 0"),
    ],
)
def test_a_mistake_in_a_sweep_is_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_seeds_are_counted_from_zero():
    assert seeds(3) == (0, 1, 2)
