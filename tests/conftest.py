"""Eight simulated CPU devices, strict rank promotion, and a cache that the tests share and nothing else sees."""

import os
import tempfile

# Level 0: tiny models take far longer to optimize than to run.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["LM_CACHE"] = os.environ.get("LM_TEST_CACHE") or tempfile.mkdtemp(prefix="lm-tests-")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # read by JAX when a test (or its subprocess) imports it
