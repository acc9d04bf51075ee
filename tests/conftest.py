"""Eight simulated CPU devices, strict rank promotion, and a cache that the tests share and nothing else sees.

`JAX_PLATFORMS=cuda` runs tests on a GPU instead, those that need one device (`launch/gpu_check.sh`).
"""

import importlib.metadata
import os
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models take far longer to compile than to run. Level 0: no optimization; one LLVM module a program.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters of fusions do not go through MLIR: half the time, the same results. jaxlib 0.11 has none.
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
_FLAGS = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
if os.environ["JAX_PLATFORMS"] == "cpu" and _FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `lm` does
# One cache of compiled programs and prepared data for all workers of this session, made anew for each session.
os.environ.setdefault("LM_TEST_CACHE", tempfile.mkdtemp(prefix="lm-tests-"))
os.environ["LM_CACHE"] = os.environ["LM_TEST_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["LM_TEST_CACHE"], "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # read by JAX when a test (or its subprocess) imports it


@pytest.fixture
def real_data():
    """The folder of real corpora."""
    if "LM_REAL_DATA" not in os.environ:
        pytest.skip("needs $LM_REAL_DATA")
    return os.environ["LM_REAL_DATA"]


@pytest.fixture
def site(monkeypatch):
    """A local HTTP server, reached without a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    from tests.data.http import Site

    server = Site()
    yield server
    server.shutdown()
    server.server_close()
