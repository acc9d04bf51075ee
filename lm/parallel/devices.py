"""What the machine in front of us is, as plain data."""

import jax

from lm.capabilities import Capabilities


def detect() -> Capabilities:
    """Return the capabilities of the default backend's devices."""
    device = jax.devices()[0]
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Capabilities(platform=platform, device_kind=device.device_kind)
