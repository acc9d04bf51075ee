"""Into how many devices a CPU is divided."""

import pytest

from lm.commands import startup
from lm.config import apply_overrides, default
from lm.tokenizer import parallel


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def devices(**overrides: str) -> int:
    config = default()
    large = {"data.batch_size": "8", "data.sequence_length": "256"}
    apply_overrides(config, list((large | {k.replace("__", "."): v for k, v in overrides.items()}).items()))
    return startup.cpu_devices_for(config)


def test_a_cpu_is_divided_where_it_pays(two_cores):
    assert devices() == 2


@pytest.mark.parametrize(
    "overrides",
    [
        {"data__sequence_length": "128"},  # few tokens
        {"optimizer__accumulation_steps": "2"},  # few at a time
        {"optimizer__name": "muon"},  # both devices would do its work
        {"data__batch_size": "9"},  # rows that two cannot share
        {"parallel__data": "1"},  # one device is asked for
    ],
    ids=str,
)
def test_a_cpu_is_left_whole_where_it_does_not(two_cores, overrides):
    assert devices(**overrides) == 1


def test_what_the_user_or_the_machine_says_goes_first(two_cores, monkeypatch):
    monkeypatch.setattr(parallel, "available_cores", lambda: 1)
    assert devices() == 1
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    assert devices() == 1
