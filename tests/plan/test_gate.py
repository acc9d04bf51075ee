"""A config that will not fit is refused before anything is allocated, with the cheapest change that makes it fit."""

import dataclasses

import pytest

from lm.capabilities import Capabilities
from lm.config import apply_overrides, default
from lm.errors import ConfigError
from lm.plan.gate import cheapest_change, check_fits
from lm.plan.memory import memory
from lm.plan.plan import MARGIN, within
from lm.plan.search import change, is_possible, mesh_of, overrides
from lm.presets import preset
from lm.resolve import resolve
from tests.plan.common import V5E, V5P, config_of


def test_what_fits_is_let_through():
    check_fits(config_of(**{"model.remat": "full"}), V5E)


def test_a_device_whose_memory_is_not_known_holds_everything():
    check_fits(config_of("llama_70b", devices=1), Capabilities())


def test_the_refusal_says_what_is_needed_what_there_is_and_what_to_change():
    config = config_of(**{"data.batch_size": "128", "data.sequence_length": "4096"})
    with pytest.raises(ConfigError) as error:
        check_fits(config, V5E)
    (line,) = str(error.value).splitlines()
    need = memory(config, mesh_of(config)).total / 2**30
    assert line.startswith(
        f"config does not fit: {need:.1f} GiB per device, but TPU v5 lite has 15.8. Cheapest change: "
    )
    assert "--config.model.remat=" in line


@pytest.mark.parametrize(
    "name, devices, capabilities, given, changed",
    [
        ("llama_1b", 16, V5E, {"data.batch_size": "128"}, ["model.remat"]),
        # Nothing is left to recompute or offload: fewer rows at a time.
        (
            "llama_1b",
            16,
            V5E,
            {"model.remat": "offload:block_input", "data.batch_size": "1024"},
            ["optimizer.accumulation_steps"],
        ),
        # One row each: the state must be shared more.
        (
            "llama_7b",
            16,
            V5P,
            {"parallel.zero": "0", "model.remat": "offload:block_input", "data.batch_size": "16"},
            ["parallel.zero"],
        ),
        (
            "llama_7b",
            16,
            V5P,
            {
                "parallel.fsdp": "1",
                "parallel.data": "16",
                "model.remat": "offload:block_input",
                "data.batch_size": "16",
            },
            ["parallel.data", "parallel.fsdp"],
        ),
    ],
)
def test_the_cheapest_change_is_the_first_in_a_fixed_order_that_fits(name, devices, capabilities, given, changed):
    config = config_of(name, devices, capabilities, **given)
    better = cheapest_change(config, capabilities)
    assert [text.removeprefix("--config.").split("=")[0] for text in overrides(better, config)] == changed
    assert within(memory(better, mesh_of(better)).total, capabilities.memory_bytes)
    assert not within(memory(config, mesh_of(config)).total, capabilities.memory_bytes)


def test_the_change_can_be_pasted_and_fits_when_resolved():
    config_dict = default()
    config_dict.model.update(preset("llama_7b"))
    given = {"precision.compute": "bfloat16", "data.sequence_length": "4096", "data.batch_size": "256"}
    given |= {"parallel.data": "64", "parallel.fsdp": "1"}
    apply_overrides(config_dict, list(given.items()))
    config = resolve(config_dict, devices=64, capabilities=V5P)
    with pytest.raises(ConfigError) as error:
        check_fits(config, V5P)
    pasted = str(error.value).partition("Cheapest change: ")[2].split(" (")[0].split()
    changes = [tuple(text.removeprefix("--config.").split("=", 1)) for text in pasted]
    assert changes
    apply_overrides(config_dict, changes)
    check_fits(resolve(config_dict, devices=64, capabilities=V5P), V5P)


def test_what_no_change_can_make_fit_says_so():
    with pytest.raises(ConfigError, match="No remat policy, ZeRO stage, mesh or number of micro-batches makes it fit"):
        check_fits(config_of("llama_70b", devices=16), V5E)


def test_within_the_formulas_own_error_a_config_may_start():
    limit = 1000
    assert within(int(limit / (1 + MARGIN)), limit) is True
    assert within(limit, limit) is None
    assert within(int(limit / (1 - MARGIN)) + 2, limit) is False


def test_a_change_is_only_proposed_where_the_batch_and_the_model_divide():
    config = config_of()
    assert is_possible(config)
    assert not is_possible(change(config, micro=3))
    assert not is_possible(change(config, tensor=3))
    assert not is_possible(change(config, stage=2)), "fewer micro-batches than stages"
    long = dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=2047))
    assert not is_possible(change(long, context=2))
