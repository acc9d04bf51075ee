"""The mixture of domains: exact shares, any row from its number alone, epochs capped."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import apply_overrides, default
from lm.data.card import card, card_text
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.data.mixture import BLOCK, Mixture, cap_epochs, fixed, planned, proportional, temperature
from lm.data.permutation import permute, round_keys
from lm.errors import ConfigError
from lm.resolve import fingerprint, resolve
from tests.data.conftest import DOMAINS, build_domains

T, B = 16, 8
CONSTANT = ((0, "wiki", 0.5), (0, "books", 0.2), (0, "code", 0.3))
SCHEDULE = (*CONSTANT, (37, "books", 1.0), (37, "wiki", 3.0), (61, "code", 1.0))


@pytest.fixture(params=["concat", "best_fit"])
def packing(request):
    return request.param


def loader_of(folder, mixture=CONSTANT, **options):
    return Loader(folder, **{"sequence_length": T, "batch_size": B, "mixture": mixture, **options})


def domain_of_rows(loader):
    """Return the domain of each of the split's rows."""
    rows = [plan.num_rows for plan in loader._plans]
    return np.repeat(np.array(loader.dataset.domains("train")), rows)


weights_lists = st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(weights=weights_lists, length=st.integers(1, 5000))
def test_every_block_ends_less_than_a_row_from_the_weights_and_the_last_one_exactly_at_the_stages_end(weights, length):
    weights = {f"d{number}": weight for number, weight in enumerate(weights)}
    mixture = Mixture([(0, weights), (length, {"d0": 1})], 0)
    total = sum(weights.values())
    for rows in (*range(BLOCK, length, BLOCK), length):
        if rows != length and length - rows < BLOCK:
            continue  # the last block took the rest
        counts = mixture.counts(rows)
        assert sum(counts.values()) == rows
        for domain, weight in weights.items():
            assert abs(counts.get(domain, 0) - Fraction(rows * weight, total)) < 1


def test_within_a_block_the_domains_are_spread_by_the_seed():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    one, other = (Mixture([(0, weights)], seed).places(np.arange(4 * BLOCK))[0] for seed in (0, 1))
    assert (one != other).any() and (one[:BLOCK] != one[BLOCK : 2 * BLOCK]).any()
    for number, weight in enumerate(weights.values()):
        counts = np.cumsum(one == number)
        assert np.abs(counts - weight * (1 + np.arange(len(one)))).max() < len(weights)


@settings(max_examples=40, deadline=None)
@given(weights=weights_lists, first=st.integers(1, 3000), asked=st.lists(st.integers(0, 9000), max_size=40))
def test_a_row_is_found_from_its_number_alone_and_each_domain_is_read_in_order(weights, first, asked):
    weights = {f"d{number}": weight for number, weight in enumerate(weights)}
    stages = [(0, weights), (first, {"d0": 1, "d1": 2})]
    whole = Mixture(stages, 3).places(np.arange(9001))
    for number, _ in enumerate(Mixture(stages, 3).domains):
        np.testing.assert_array_equal(whole[1][whole[0] == number], np.arange((whole[0] == number).sum()))
    some = Mixture(stages, 3).places(np.array(asked, np.int64))
    for part, every in zip(some, whole, strict=True):
        np.testing.assert_array_equal(part, every[asked])


def test_a_rare_domain_is_not_forgotten_and_one_that_is_too_rare_is_refused():
    mixture = Mixture([(0, {"common": 1.0, "rare": 1e-5})], 0)
    counts = mixture.counts(2**18)
    assert counts["rare"] in (2, 3)
    with pytest.raises(ConfigError, match='"rare" has a share of 1e-12'):
        Mixture([(0, {"common": 1.0, "rare": 1e-12})], 0)


def test_weights_by_size_by_temperature_and_fixed():
    tokens = {"a": 10**12, "b": 10**10}
    assert proportional(tokens) == pytest.approx({"a": 100 / 101, "b": 1 / 101})
    assert temperature(tokens, 2.0) == pytest.approx({"a": 10 / 11, "b": 1 / 11})
    assert temperature(tokens, 1e9)["b"] == pytest.approx(0.5)
    assert fixed([("a", 3.0), ("b", 1.0)]) == {"a": 0.75, "b": 0.25}


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    caps=st.lists(st.one_of(st.none(), st.floats(0.1, 4)), min_size=3, max_size=3),
    rows=st.lists(st.integers(10, 500), min_size=3, max_size=3),
    total=st.integers(1, 3000),
)
def test_capped_shares_keep_the_caps_and_the_order_of_the_rest(weights, caps, rows, total):
    names = ["a", "b", "c"]
    weights, rows = dict(zip(names, weights, strict=True)), dict(zip(names, rows, strict=True))
    caps = {name: cap for name, cap in zip(names, caps, strict=True) if cap is not None}
    room = sum(int(Fraction(repr(caps[name])) * rows[name]) for name in caps)
    if len(caps) == 3 and room < total:
        with pytest.raises(ConfigError, match=r"raise config\.data\.max_epochs of a, b, c"):
            cap_epochs(weights, rows, caps, total)
        return
    shares = cap_epochs(weights, rows, caps, total)
    assert sum(shares.values()) == 1
    below = {name: shares[name] / Fraction(repr(weights[name])) for name in names}
    for name, cap in caps.items():
        assert shares[name] * total <= Fraction(repr(cap)) * rows[name]
        if shares[name] * total < int(Fraction(repr(cap)) * rows[name]):
            assert below[name] == max(below.values())  # only what is at its cap has less than its weight asks for
    uncapped = [below[name] for name in names if name not in caps]
    assert all(ratio == max(below.values()) for ratio in uncapped)


def test_a_run_ends_with_exactly_what_the_caps_allow():
    rows = {"small": 100, "large": 10**6}
    mixture = planned([(0, {"small": 1.0, "large": 1.0})], rows, {"small": 1.5}, 9_999, 0)
    assert mixture.counts(9_999) == {"large": 9_849, "small": 150}
    staged = planned(
        [(0, {"large": 1.0, "small": 1.0}), (200, {"small": 1.0, "large": 1.0})], rows, {"small": 1.5}, 9_999, 0
    )
    assert staged.counts(200)["small"] == 100  # earlier stages come first
    assert staged.counts(9_999)["small"] == 150
    weights = [(0, {"large": 1.0}), (5, {"small": 1.0}), (5, {"large": 1.0, "small": 1.0}), (12_000, {"small": 1.0})]
    assert planned(weights, rows, {"small": 1.5}, 9_999, 0).counts(9_999)["small"] == 150  # two stages have no rows


@pytest.mark.parametrize("mixture", [CONSTANT, SCHEDULE])
def test_batches_hold_the_domains_in_their_shares_and_change_at_the_steps_asked_for(domains_folder, packing, mixture):
    loader = loader_of(domains_folder, mixture, packing=packing)
    domains = domain_of_rows(loader)
    read = domains[loader.row_indices(np.arange(80 * B))]
    wanted = {step: {d: w for s, d, w in mixture if s == step} for step in sorted({s for s, _, _ in mixture})}
    edges = [*wanted, 80]
    for (step, weights), end in zip(wanted.items(), edges[1:], strict=True):
        part = read[step * B : end * B]
        assert set(part) == set(weights)
        if end < 80:
            for domain, weight in weights.items():
                assert abs((part == domain).sum() - len(part) * weight / sum(weights.values())) < 1


def test_each_domain_reads_all_its_rows_in_every_epoch_in_orders_of_its_own(domains_folder, packing):
    loader = loader_of(domains_folder, packing=packing)
    domains = domain_of_rows(loader)
    read = loader.row_indices(np.arange(3000))
    for domain in DOMAINS:
        own = read[domains[read] == domain]
        rows = int((domains == domain).sum())
        first, second = own[:rows], own[rows : 2 * rows]
        here = np.flatnonzero(domains == domain)
        assert sorted(first) == here.tolist()
        np.testing.assert_array_equal(first, here[permute(np.arange(rows), rows, round_keys(0, "domain", domain, 0))])
        assert sorted(first) == sorted(second)[: len(first)] or len(second) < rows
        assert (first[: len(second)] != second[: len(first)]).any()
        assert loader.domain_epochs(3000 // B)[domain] == pytest.approx(len(own) / rows)


def test_steps_hosts_and_batch_sizes_read_the_same_rows(domains_folder):
    loader = loader_of(domains_folder, SCHEDULE)
    forward = [loader.batch(step) for step in range(64)]
    again = loader_of(domains_folder, SCHEDULE)
    for step in (63, 36, 37, 0):  # as after a resume
        parts = [again.batch(step, rows=slice(host * 2, host * 2 + 2)) for host in range(4)]
        for name, array in forward[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    half = loader_of(domains_folder, [(2 * s, d, w) for s, d, w in SCHEDULE], batch_size=B // 2)
    for step in (36, 40, 62):
        joined = np.concatenate([half.batch(2 * step + i)["inputs_BT"] for i in range(2)])
        np.testing.assert_array_equal(joined, forward[step]["inputs_BT"])
    assert half.mixture_hash == loader.mixture_hash


def test_stages_of_other_shapes_cut_the_same_rows(domains_folder):
    stages = ((0, 3, 4), (10, 4, 16), (20, 8, 8))
    mixture = ((0, "wiki", 1.0), (0, "code", 1.0), (7, "books", 1.0), (13, "code", 1.0))
    loader = loader_of(domains_folder, mixture, stages=stages)
    domains = domain_of_rows(loader)
    for step in range(30):
        stage, first = loader.stages.at(step), loader.stages.position(step)
        length = stage.sequence_length
        numbers = np.arange(first // T, (first + stage.batch_size * length - 1) // T + 1)
        whole = loader.numbered_rows(numbers)["inputs_BT"].reshape(-1)[first % T :]
        expected = whole[: stage.batch_size * length].reshape(-1, length)
        np.testing.assert_array_equal(loader.batch(step)["inputs_BT"], expected)
        # A row that a change of weights finds begun is read to its end.
        fresh = set(domains[loader.row_indices(np.arange(-(-first // T), numbers[-1] + 1))])
        allowed = {d for s, d, _ in mixture if s == max(s for s, _, _ in mixture if s <= step)}
        assert fresh <= allowed


def test_without_a_mixture_domains_change_nothing(domains_folder):
    loader = Loader(domains_folder, sequence_length=T, batch_size=B, seed=5)
    assert loader.mixture is None and loader.mixture_hash is None and loader.domain_epochs(3) == {}
    rows = loader.rows_per_epoch
    expected = permute(np.arange(rows), rows, round_keys(5, 0))
    np.testing.assert_array_equal(loader.row_indices(np.arange(rows)), expected)


def test_the_manifests_mixture_is_used_where_the_config_has_none(dataset, domains_folder, tmp_path):
    mixture = {"weights": {"wiki": 3, "code": 1}, "max_epochs": {"wiki": 2.0}}
    folder = build_domains(str(tmp_path), dataset.tokenizer, mixture=mixture)
    assert open_data(folder).hash != open_data(domains_folder).hash
    by_manifest = loader_of(folder, ())
    asked = loader_of(domains_folder, ((0, "code", 1.0), (0, "wiki", 3.0)))
    np.testing.assert_array_equal(by_manifest.batch(9)["inputs_BT"], asked.batch(9)["inputs_BT"])
    assert set(loader_of(folder, CONSTANT).mixture.domains) == set(DOMAINS)
    capped = loader_of(folder, (), num_steps=400)
    assert capped.domain_epochs(400)["wiki"] == pytest.approx(2.0)
    more = loader_of(folder, (), num_steps=400, max_epochs=(("wiki", 4.0),))
    assert more.domain_epochs(400)["wiki"] == pytest.approx(4.0)
    assert loader_of(folder, (), split="validation").mixture is None
    text = card_text(card(open_data(folder)))
    assert "mixture" in text and "wiki" in text and "epochs" in text


def test_what_the_data_cannot_give_is_refused_in_one_line(folder, domains_folder):
    with pytest.raises(ConfigError, match=r"config\.data\.mixture: .* has no domains"):
        loader_of(folder)
    with pytest.raises(ConfigError, match=r"config\.data\.max_epochs: .* has no domains"):
        loader_of(folder, (), max_epochs=(("wiki", 1.0),))
    with pytest.raises(ConfigError, match=r'"wikki".*Did you mean "wiki"'):
        loader_of(domains_folder, ((0, "wikki", 1.0),))
    with pytest.raises(ConfigError, match=r"raise config\.data\.max_epochs of books"):
        loader_of(domains_folder, ((0, "books", 1.0),), max_epochs=(("books", 1.0),), num_steps=10_000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("((5, 'wiki', 1.0),)", "from step 0"),
        ("((0, 'wiki', 1.0), (0, 'wiki', 2.0))", "once at step 0"),
        ("((0, 'wiki', 0.0),)", "above 0"),
        ("((0, 'wiki', -1.0),)", "at least 0"),
        ("((0, 'wiki'),)", "an integer, a text, a number"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_a_config_error(value, message):
    config = default()
    apply_overrides(config, [("data.mixture", value)])
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_the_mixture_names_the_run():
    config = default()
    plain = fingerprint(resolve(config))
    config.data.mixture = ((0, "wiki", 1), (0, "code", 2))
    mixed = resolve(config)
    assert mixed.data.mixture == ((0, "wiki", 1.0), (0, "code", 2.0))
    other = dataclasses.replace(mixed, data=dataclasses.replace(mixed.data, max_epochs=(("wiki", 1.0),)))
    assert len({plain, fingerprint(mixed), fingerprint(other)}) == 3
