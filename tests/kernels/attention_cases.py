"""Attention as its definition reads, in float64, and random cases of all options."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.flash_attention import flash_attention


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem; `documents` of each row: 0 for no segment ids."""

    B: int = 2
    T: int = 40
    S: int = 40
    N: int = 4
    K: int = 2
    H: int = 8
    causal: bool = True
    window: int | None = None
    documents: int = 0
    softcap: float | None = None
    scale: float | None = None
    offset: int | None = None  # None: S - T, known while tracing
    dtype: str = "float32"
    seed: int = 0

    @property
    def options(self) -> dict:
        return {"causal": self.causal, "window": self.window, "softcap": self.softcap, "scale": self.scale}

    @property
    def q_offset(self):
        return self.S - self.T if self.offset is None else self.offset

    def arrays(self) -> tuple[list[np.ndarray], dict]:
        """Return q, k, v, dout and dlse, and the segment ids."""
        random = np.random.default_rng(self.seed)
        shapes = [(self.B, self.T, self.N, self.H), *[(self.B, self.S, self.K, self.H)] * 2]
        shapes += [(self.B, self.T, self.N, self.H), (self.B, self.N, self.T)]
        arrays = [np.array(jnp.asarray(random.normal(size=shape), self.dtype)) for shape in shapes[:4]]
        arrays.append(random.normal(size=shapes[4]).astype(np.float32))
        if not self.documents:
            return arrays, {}
        ids_BS = np.sort(random.integers(1, self.documents + 1, (self.B, self.S)), axis=1).astype(np.int32)
        return arrays, {"q_segment_ids": ids_BS[:, self.S - self.T :], "kv_segment_ids": ids_BS}


def pairwise(options: Mapping[str, Sequence], seed: int) -> list[dict]:
    """Return a value of each option, so often that any two values of two options meet at least once."""
    random, rows = np.random.default_rng(seed), []
    numbers = [range(len(values)) for values in options.values()]
    left = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(numbers)), 2)
        for a, b in itertools.product(numbers[i], numbers[j])
    }
    while left:
        tried = [tuple(int(random.integers(len(own))) for own in numbers) for _ in range(200)]
        best = max(tried, key=lambda row: len(left & _pairs(row)))
        left -= _pairs(best)
        rows.append({name: values[i] for (name, values), i in zip(options.items(), best, strict=True)})
    return rows


def _pairs(row: Sequence[int]) -> set:
    return set(itertools.combinations(enumerate(row), 2))


def seen(case: Case, ids: dict) -> np.ndarray:
    """Return who sees whom, `[B, T, S]`."""
    at_q, at_k = case.q_offset + np.arange(case.T)[:, None], np.arange(case.S)[None]
    mask = np.ones((case.T, case.S), bool)
    if case.causal or case.window is not None:
        mask &= at_k <= at_q
    if case.window is not None:
        mask &= at_k > at_q - case.window
    mask = np.broadcast_to(mask, (case.B, case.T, case.S))
    if ids:
        mask = mask & (ids["q_segment_ids"][:, :, None] == ids["kv_segment_ids"][:, None])
    return mask


def definition(case: Case) -> list[np.ndarray]:
    """Return what `define` does of a case."""
    arrays, ids = case.arrays()
    scale = case.H**-0.5 if case.scale is None else case.scale
    return define(*arrays, mask_BTS=seen(case, ids), scale=scale, softcap=case.softcap)


def define(q, k, v, dout, dlse, *, mask_BTS: np.ndarray, scale: float, softcap: float | None) -> list[np.ndarray]:
    """Return out, lse (0 where a query sees no key) and the gradients of q, k and v in float64."""
    q, k, v, dout, dlse = (np.asarray(x, np.float64) for x in (q, k, v, dout, dlse))
    B, S, K, H = k.shape
    G, mask = q.shape[2] // K, mask_BTS[:, None]
    k, v = np.repeat(k, G, 2), np.repeat(v, G, 2)
    products = scale * np.einsum("BTNH,BSNH->BNTS", q, k)
    tanh = np.tanh(products / softcap) if softcap else np.zeros(())
    logits = np.where(mask, softcap * tanh if softcap else products, -np.inf)
    any_key = mask.any(-1, keepdims=True)
    top = np.where(any_key, logits.max(-1, keepdims=True), 0)
    weights = np.exp(logits - top)
    total = np.where(any_key, weights.sum(-1, keepdims=True), 1)
    weights = weights / total
    out = np.einsum("BNTS,BSNH->BTNH", weights, v)
    lse = np.where(any_key, top + np.log(total), 0)[..., 0]
    delta = (np.einsum("BTNH,BTNH->BNT", out, dout) - dlse)[..., None]
    dlogits = scale * weights * (np.einsum("BTNH,BSNH->BNTS", dout, v) - delta) * (1 - np.square(tanh))
    dq = np.einsum("BNTS,BSNH->BTNH", dlogits, k)
    dk = np.einsum("BNTS,BTNH->BSNH", dlogits, q)
    dv = np.einsum("BNTS,BTNH->BSNH", weights, dout)
    return [out, lse, dq, *(x.reshape(B, S, K, G, H).sum(3) for x in (dk, dv))]


def computed(case: Case, implementation: str, *, arrays=None, ids=None, **options) -> list[np.ndarray]:
    """Return the same five from `flash_attention`."""
    own_arrays, own_ids = case.arrays()
    q, k, v, dout, dlse = map(jnp.asarray, own_arrays if arrays is None else arrays)
    ids = {name: jnp.asarray(x) for name, x in (own_ids if ids is None else ids).items()}
    traced = {} if case.offset is None else {"q_offset": jnp.asarray(case.offset, jnp.int32)}
    static = {"q_offset": case.q_offset} if case.offset is None else {}

    def loss(q, k, v, traced):
        out, lse = flash_attention(
            q, k, v, **case.options, **ids, **static, **traced, return_lse=True, implementation=implementation
        )
        lse = jnp.where(lse > -1e38, lse, 0.0)
        return jnp.sum(out.astype(jnp.float32) * dout) + jnp.sum(lse * dlse), (out, lse)

    grads, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v, traced)
    assert out.dtype == q.dtype and [g.dtype for g in grads] == [q.dtype] * 3
    return [np.asarray(x.astype(jnp.float32)) for x in (out, lse, *grads)]


def assert_matches(case: Case, implementation: str, tolerance: float) -> None:
    """Hold the results to a tolerance relative to each one's norm (of gradients: to that of all three)."""
    got, wanted = computed(case, implementation), definition(case)
    norm = np.sqrt(sum(np.sum(x**2) for x in wanted[2:]))
    sizes = [np.linalg.norm(wanted[0]), np.linalg.norm(wanted[1]), norm, norm, norm]
    for name, ours, theirs, size in zip(("out", "lse", "dq", "dk", "dv"), got, wanted, sizes, strict=True):
        assert np.isfinite(ours).all(), name
        assert np.linalg.norm(ours - theirs) <= tolerance * max(size, 1e-6), (name, case)
