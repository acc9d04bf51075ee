"""From text to batches: sources, splits, token shards, pack plans and the stateless loader. No JAX here."""

from lm.data.build import build
from lm.data.dataset import Dataset, open_data
from lm.data.loader import Loader
from lm.data.prefetch import Prefetcher
from lm.data.prepare import prepare
from lm.data.shards import Shard
from lm.data.sources import Document
from lm.data.windows import EvalBatches, strided_windows

__all__ = [
    "Dataset",
    "Document",
    "EvalBatches",
    "Loader",
    "Prefetcher",
    "Shard",
    "build",
    "open_data",
    "prepare",
    "strided_windows",
]
