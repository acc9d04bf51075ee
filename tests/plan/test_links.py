"""Which links a mesh axis lies on: rings and lines of a torus, switches, networks."""

import dataclasses
import itertools

import numpy as np
import pytest

from lm.plan.chips import CHIPS, chip
from lm.plan.links import bandwidth, latency


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    coords: tuple[int, ...]
    slice_index: int = 0
    process_index: int = 0


class FakeMesh:
    def __init__(self, devices: np.ndarray, *axis_names: str):
        self.devices, self.axis_names = devices, axis_names


def torus(kind: str, sizes: tuple[int, ...], shape: tuple[int, ...], *axes: str, slices: int = 1) -> FakeMesh:
    """A mesh that fills a torus in order, slice after slice."""
    places = [(s, c) for s in range(slices) for c in itertools.product(*map(range, sizes))]
    devices = np.empty(len(places), object)
    devices[:] = [Device(kind, (*c, 0)[:3], s) for s, c in places]
    return FakeMesh(devices.reshape(shape), *axes)


V5P, V5E = CHIPS["TPU v5"].link_bandwidth, CHIPS["TPU v5 lite"].link_bandwidth


@pytest.mark.parametrize(
    "kind, sizes, shape, expected",
    [
        ("TPU v5", (4, 4, 4), (16, 4), (4 * V5P, 2 * V5P)),  # whole cubes are closed by optical switches
        ("TPU v5", (2, 2, 2), (4, 2), (2 * V5P, V5P)),  # smaller ones are not
        ("TPU v5 lite", (16, 16), (16, 16), (2 * V5E, 2 * V5E)),
        ("TPU v5 lite", (4, 4), (4, 4), (V5E, V5E)),
        ("TPU v5 lite", (16, 16), (256, 1), (4 * V5E, np.inf)),
        ("TPU v5", (8, 8, 8), (128, 4), (4 * V5P + V5P / 4, V5P)),  # a dimension in two parts: every fourth, and lines
    ],
)
def test_every_dimension_of_the_torus_adds_its_links(kind, sizes, shape, expected):
    mesh = torus(kind, sizes, shape, "outer", "inner")
    assert (bandwidth(mesh, ("outer",)), bandwidth(mesh, ("inner",))) == pytest.approx(expected)


def test_slices_are_joined_by_the_network_on_which_each_device_sends_its_share():
    mesh = torus("TPU v5 lite", (2, 4), (2, 8), "across", "inside", slices=2)
    network = CHIPS["TPU v5 lite"].network_bandwidth
    assert bandwidth(mesh, ("across",)) == network
    assert bandwidth(mesh, ("across", "inside")) == 8 * network
    assert bandwidth(mesh, ("inside",)) == 2 * V5E


def test_gpus_of_a_host_share_a_switch_and_hosts_a_network():
    devices = np.array([Device("NVIDIA H200", (0,), process_index=i // 8) for i in range(16)])
    mesh = FakeMesh(devices.reshape(2, 8), "across", "inside")
    assert bandwidth(mesh, ("inside",)) == CHIPS["NVIDIA H200"].link_bandwidth
    assert bandwidth(mesh, ("across",)) == CHIPS["NVIDIA H200"].network_bandwidth
    assert bandwidth(mesh, ("across", "inside")) == 8 * CHIPS["NVIDIA H200"].network_bandwidth


def test_two_devices_of_a_chip_share_its_links():
    devices = np.empty((2, 2, 2, 2), object)
    for place in np.ndindex(devices.shape):
        devices[place] = Device("TPU7x", place[:3])
    mesh = FakeMesh(devices.reshape(8, 2), "chips", "cores")
    assert bandwidth(mesh, ("chips", "cores")) == 3 * CHIPS["TPU7x"].link_bandwidth / 2


def test_far_devices_take_longer_and_unknown_hardware_has_no_figures():
    assert latency(torus("TPU v5", (8, 8, 8), (512,), "all"), ("all",)) == pytest.approx(12e-6)
    assert latency(torus("TPU v5 lite", (4, 4), (16,), "all"), ("all",)) == pytest.approx(6e-6)
    cpu = torus("cpu", (2,), (2,), "all")
    assert chip("cpu") is None and bandwidth(cpu, ("all",)) is None and latency(cpu, ("all",)) == 0


def test_every_chip_has_a_peak_and_a_memory_size():
    from lm.capabilities import Capabilities
    from lm.plan.assumptions import efficiency

    for kind in CHIPS:
        known = "NVIDIA H100 80GB HBM3" if kind == "NVIDIA H100" else kind
        capabilities = Capabilities("tpu", known)
        assert capabilities.peak_flops("bfloat16") and capabilities.memory_bytes and efficiency(kind), kind
