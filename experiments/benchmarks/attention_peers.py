"""The cases and implementations that `experiments.benchmarks.attention` compares: ours and every peer's call."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from lm.capabilities import ATTENTION, AttentionCall

LONGEST_MASK, MOST_LOGITS = 8192, 2**28  # tokens of a [T, T] mask; elements for a peer that holds all logits


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention; a window, and packed documents of so many tokens each, come with `causal`."""

    B: int
    T: int
    N: int
    K: int
    H: int
    causal: bool = True
    window: int | None = None
    document: int | None = None
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        keys = f" K{self.K}" if self.K < self.N else ""
        window = f" window {self.window}" if self.window else ""
        documents = f" documents {self.document}" if self.document else ""
        masks = f"{'causal' if self.causal else 'full'}{window}{documents}"
        return f"B{self.B} T{self.T} N{self.N}{keys} H{self.H} {masks}"

    @property
    def small(self) -> "Case":
        """The version that is held against the reference."""
        return dataclasses.replace(self, B=1, T=512, window=self.window and 100, document=self.document and 128)

    @property
    def call(self) -> AttentionCall:
        masks = {"segment_ids": self.document is not None, "window": self.window is not None}
        return AttentionCall(self.dtype, self.H, self.T, **masks)

    @property
    def pairs(self) -> int:
        """How many pairs of query and key see each other."""
        at_T = np.arange(self.T)
        first_T = np.maximum(at_T - at_T % (self.document or self.T), at_T - (self.window or self.T) + 1)
        return int((at_T - first_T + 1).sum()) if self.causal else self.T**2

    def draw(self) -> list[np.ndarray]:
        """Return q, k, v and the output's gradient in f32, `[B, T, heads, H]`, the same in both processes."""
        random = np.random.default_rng(0)
        shapes = [(self.B, self.T, heads, self.H) for heads in (self.N, self.K, self.K, self.N)]
        return [random.standard_normal(shape, np.float32) for shape in shapes]


# Who computes attention: JAX's functions of q, k, v and the documents' ids or None, torch's of q, k and v.


def ours(name: str, case: Case) -> Callable:
    from lm.kernels.flash_attention import flash_attention

    attend = partial(flash_attention, causal=case.causal, window=case.window, implementation=name)
    return lambda q, k, v, ids_BT: attend(q, k, v, q_segment_ids=ids_BT)


def jax_nn(implementation: str, case: Case) -> Callable:
    import jax

    window = (case.window - 1, 0) if case.window else None
    options = {"is_causal": case.causal, "local_window_size": window, "implementation": implementation}

    def attend(q, k, v, ids_BT):
        mask_B1TT = None if ids_BT is None else (ids_BT[:, :, None] == ids_BT[:, None, :])[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask_B1TT, **options)

    return attend


def jax_triton(case: Case) -> Callable:
    from jax.experimental.pallas.ops.gpu.attention import mha  # with its default blocks

    return lambda q, k, v, ids_BT: mha(q, k, v, ids_BT, sm_scale=case.H**-0.5, causal=case.causal)


def tpu_flash(case: Case) -> Callable:
    from jax.experimental.pallas.ops.tpu import flash_attention as op

    # Its default blocks, of 128, are known to be slow.
    sizes = {field.name: min(512, case.T) for field in dataclasses.fields(op.BlockSizes)} | {"block_b": 1}
    options = {"causal": case.causal, "sm_scale": case.H**-0.5, "block_sizes": op.BlockSizes(**sizes)}

    def attend(q, k, v, ids_BT):
        segments = None if ids_BT is None else op.SegmentIds(ids_BT, ids_BT)
        return op.flash_attention(q, k, v, segment_ids=segments, **options)

    return attend


def tpu_splash(case: Case) -> Callable:
    import jax
    from jax.experimental.pallas.ops.tpu import splash_attention as op

    shape, block, compute = (case.T, case.T), min(1024, case.T), min(512, case.T)
    mask = op.CausalMask(shape) if case.causal else op.FullMask(shape)
    if case.window:
        mask = op.LocalMask(shape, (case.window - 1, 0), 0)
    blocks = op.BlockSizes(block, block, compute, block, block, compute, use_fused_bwd_kernel=True)
    masks = op.MultiHeadMask([mask] * case.N)
    kernel = op.make_splash_mha(masks, head_shards=1, q_seq_shards=1, block_sizes=blocks)

    def attend(q, k, v, ids_BT):
        segments = None if ids_BT is None else op.SegmentIds(ids_BT, ids_BT)
        return jax.vmap(kernel)(q * case.H**-0.5, k, v, segments)  # it does not scale

    return attend


def torch_sdpa(backend: str | None, case: Case, device: str) -> Callable:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    options = {"is_causal": case.causal, "enable_gqa": case.K < case.N}
    if case.window or case.document:
        at_T = torch.arange(case.T, device=device)
        at_T1, documents_T = at_T[:, None], at_T // (case.document or case.T)
        mask_TT = (at_T <= at_T1) & (at_T > at_T1 - (case.window or case.T)) & (documents_T == documents_T[:, None])
        options |= {"is_causal": False, "attn_mask": mask_TT}

    def attend(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)) if backend else contextlib.nullcontext():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    return attend


def torch_flex(case: Case, device: str) -> Callable:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    window, document = case.window, case.document

    def visible(b, h, at_q, at_k):
        seen = at_k <= at_q
        if window:
            seen = seen & (at_k > at_q - window)
        return seen & (at_k // document == at_q // document) if document else seen

    blocks = create_block_mask(visible, None, None, case.T, case.T, device=device) if case.causal else None
    torch.compiler.reset()  # dynamo runs uncompiled what it has compiled for too many shapes
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=case.K < case.N)


@dataclasses.dataclass(frozen=True)
class Implementation:
    side: str
    platforms: tuple[str, ...]
    build: Callable[..., Callable]
    supports: Callable[[Case], bool] = lambda case: True
    heads_first: bool = False  # takes [B, heads, T, H] in place of [B, T, heads, H]
    repeats_keys: bool = False  # has no grouped queries


def _mask_fits(case: Case) -> bool:
    return not (case.window or case.document) or case.T <= LONGEST_MASK


_jax, _torch = partial(Implementation, "jax"), partial(Implementation, "torch", heads_first=True)
_flash, _cudnn = partial(torch_sdpa, "FLASH_ATTENTION"), partial(torch_sdpa, "CUDNN_ATTENTION")
OURS = {
    f"ours, {name}": _jax(has.platforms, partial(ours, name), lambda case, has=has: has.lacks(case.call) is None)
    for name, has in ATTENTION.items()
    if name != "reference"
}
IMPLEMENTATIONS = OURS | {
    "torch SDPA": _torch(("cpu",), partial(torch_sdpa, None), _mask_fits),
    "jax.nn": _jax(("cpu",), partial(jax_nn, "xla"), lambda case: case.B * case.N * case.T**2 <= MOST_LOGITS),
    "jax.nn, cuDNN": _jax(("gpu",), partial(jax_nn, "cudnn")),
    "torch SDPA, cuDNN": _torch(("gpu",), _cudnn, _mask_fits),
    "torch SDPA, flash": _torch(("gpu",), _flash, lambda case: not (case.window or case.document)),
    "torch FlexAttention": _torch(("gpu",), torch_flex),
    "JAX Triton op": _jax(("gpu",), jax_triton, lambda case: not case.window, repeats_keys=True),
    "JAX Pallas flash": _jax(("tpu",), tpu_flash, lambda case: not case.window, heads_first=True, repeats_keys=True),
    "JAX splash": _jax(("tpu",), tpu_splash, heads_first=True),
}
