"""Published figures of accelerators, per device as JAX counts them; peak FLOP/s and memory are in `lm/capabilities.py`.

Sources: [G] docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in August 2026; [B] "How to Scale Your Model"
(Austin et al. 2025), tables of part 2; [N] NVIDIA's H100, H200 and DGX data sheets. A figure without a source is an
assumption and says so.
"""

import dataclasses
from collections.abc import Mapping

HOP_SECONDS = 1e-6  # from a chip of a torus to its neighbour [B]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device can move. Bandwidths are in bytes/s, and one-way where a link has two directions."""

    memory_bandwidth: float  # of its own memory
    link_bandwidth: float  # of one link to a neighbour; on a switch, of all links of the device together
    torus: int  # dimensions of the links' torus; 0: a switch joins the devices of a host
    network_bandwidth: float  # of the device's share in its host's data-centre network
    host_bandwidth: float  # between the device and its host's memory
    host_memory: float  # bytes of the host's memory for each of its devices
    devices_per_host: int
    devices_per_chip: int = 1  # that share the chip's links

    def wraps(self, size: int) -> bool:
        """Whether a torus dimension of this size is a ring, not a line.

        Three dimensions are closed by optical switches around whole cubes of 4 x 4 x 4, two only where a pod is
        16 wide [B].
        """
        return size % 4 == 0 if self.torus == 3 else size == 16


CHIPS: Mapping[str, Chip] = {
    # [G] 1,200 GB/s; [B] 4.5e10 B/s a link and way, PCIe 1.6e10, 2.5e10 B/s of network a host of 4; 407 GB a host.
    "TPU v4": Chip(1.2e12, 4.5e10, 3, 2.5e10 / 4, 1.6e10, 407e9 / 4, 4),
    # [G] 819 GB/s, 400 GB/s over 4 ports both ways, 2 NICs of 100 Gbit/s and 512 GiB a host of 8; [B] PCIe 1.5e10.
    "TPU v5 lite": Chip(8.19e11, 5e10, 2, 2.5e10 / 8, 1.5e10, 512 * 2**30 / 8, 8),
    # [G] 2,765 GB/s, 1,200 GB/s over 6 links both ways, 50 Gbit/s of network a chip, 448 GB a host of 4; [B] PCIe.
    "TPU v5": Chip(2.765e12, 1e11, 3, 50e9 / 8, 1.5e10, 448e9 / 4, 4),
    # [G] 1,638 GB/s, 800 GB/s over 4 ports both ways, 100 Gbit/s a chip, 1,536 GiB a host of 8; [B] PCIe 3.2e10.
    "TPU v6 lite": Chip(1.638e12, 1e11, 2, 100e9 / 8, 3.2e10, 1536 * 2**30 / 8, 8),
    # [G] per chip of two devices: 7,380 GB/s, 1,200 GB/s over 6 links, 100 Gbit/s, 960 GiB a host of 4 chips.
    # The host's link is assumed to be v6e's.
    "TPU7x": Chip(3.69e12, 1e11, 3, 100e9 / 16, 1.6e10, 960 * 2**30 / 8, 8, devices_per_chip=2),
    # [N] NVLink 4: 900 GB/s both ways; 8 ConnectX-7 of 400 Gbit/s, 2 TB, PCIe 5 x16.
    "NVIDIA H100": Chip(3.352e12, 4.5e11, 0, 5e10, 6.3e10, 2e12 / 8, 8),
    "NVIDIA H200": Chip(4.8e12, 4.5e11, 0, 5e10, 6.3e10, 2e12 / 8, 8),
}


def chip(device_kind: str) -> Chip | None:
    """Return a device kind's figures, or None for a device that is not listed (a CPU)."""
    matches = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(matches, key=len)] if matches else None
