"""Training runs that others published, as configs: what efficiencies are fitted to, and what predictions are held to.

MaxText's are those of `MaxText/configs/{v5e,v5p}` (scripts and README tables) and of its page "Optimized models
tiering"; its MFU counts attention without a mask (until its pull request 1988 of July 2025). A shape called 32B comes
from its `global_parameter_scale` over a base of D 2048, 16 heads of 128, F 7168 (gated), 16 layers, V 32000.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.capabilities import ATTENTION
from lm.config import Config, default
from lm.parallel.topology import Topology, describe, topology_mesh
from lm.plan.roofline import Prediction, predict
from lm.presets import preset
from lm.resolve import resolve

_BASE = {"head_dim": 128, "vocab_size": 32000, "tie_embeddings": False}


def _scaled(width: int, heads: int, hidden: int, layers: int) -> dict[str, Any]:
    return {"d_model": width, "num_heads": heads, "d_ff": hidden, "num_layers": layers, **_BASE}


@dataclasses.dataclass(frozen=True)
class Published:
    """One run and its model FLOPs utilization."""

    name: str
    topology: str
    model: Mapping[str, Any]
    length: int
    rows: int  # per device
    tensor: int
    remat: str  # the nearest of ours to what was used
    mfu: float  # with attention as if nothing were masked
    is_fitted: bool  # an efficiency is fitted to it, so that it proves nothing


# The remat policies of the sources are `full`, `minimal` (keeps matmuls: `dots`), `save_dot_except_mlpwi`, and for
# v6e a custom one that offloads each layer's input, queries, keys, values and attention's projection.
_V6E_REMAT = "offload:block_input,query,key,value,mlp_input"
PUBLISHED: Sequence[Published] = (
    Published("MaxText 16B", "v5e:16x16", _scaled(4096, 64, 28672, 32), 2048, 6, 1, "full", 0.6110, True),
    Published("MaxText 32B", "v5e:16x16", _scaled(8192, 64, 28672, 32), 2048, 4, 1, "full", 0.6686, False),
    Published("MaxText 64B", "v5e:16x16", _scaled(8192, 64, 28672, 64), 2048, 2, 1, "full", 0.5990, False),
    Published("MaxText 32B", "v5p:4x4x4", _scaled(8192, 64, 28672, 32), 2048, 7, 4, "dots", 0.7147, False),
    Published("MaxText 64B", "v5p:4x4x4", _scaled(8192, 64, 28672, 64), 2048, 3, 4, "dots", 0.7031, True),
    Published("MaxText 128B", "v5p:4x4x8", _scaled(8192, 128, 57344, 64), 2048, 1, 8, "dots", 0.6868, False),
    Published(
        "MaxText Llama 2 70B",
        "v5p:8x8x8",
        preset("llama_70b"),
        4096,
        4,
        1,
        "query,key,value,mlp_input",
        0.654,
        False,
    ),
    Published("MaxText Llama 3.1 70B", "v6e:16x16", preset("llama3.1_70b"), 8192, 2, 1, _V6E_REMAT, 0.5033, True),
    # Its page names neither rows nor remat policy: the ones of its A3 recipes for this model are taken.
    Published("MaxText Llama 2 7B", "h100:8", preset("llama_7b"), 4096, 4, 1, "dots,attention_out", 492 / 989, True),
    # torchtitan's benchmarks/llama3_h100_202412: 6,667 tokens/s a GPU with torch.compile, of lower power than usual.
    Published("torchtitan 8B", "h100:8", preset("llama3.1_8b"), 8192, 2, 1, "dots,attention_out", 0.39, False),
    Published("MaxText Llama 3.1 8B", "v6e:16x16", preset("llama3.1_8b"), 8192, 3, 1, _V6E_REMAT, 0.4546, False),
)


def predict_published(run: Published) -> tuple[Config, Prediction]:
    """Return a published run as a config, and what the roofline says of it."""
    topology = describe(run.topology)
    if topology.capabilities.platform == "gpu":  # described without cuDNN, which the compiler cannot use here
        topology = dataclasses.replace(
            topology, capabilities=dataclasses.replace(topology.capabilities, attention=ATTENTION)
        )
    config = resolve(_config(run, topology), devices=topology.num_devices, capabilities=topology.capabilities)
    mesh = topology_mesh(topology, config.parallel)
    return config, predict(config, mesh, topology.capabilities.peak_flops(config.precision.compute))


def _config(run: Published, topology: Topology):
    config = default()
    config.model.update(run.model)
    config.model.remat = run.remat
    config.precision.compute = "bfloat16"
    config.data.sequence_length = run.length
    config.data.batch_size = run.rows * topology.num_devices
    config.data.document_mask = False
    config.parallel.data = 1
    config.parallel.tensor = run.tensor
    config.parallel.fsdp = topology.num_devices // run.tensor
    return config
