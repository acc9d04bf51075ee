"""Turning logits into the next token. Names are those of Hugging Face's GenerationConfig."""

import dataclasses

import jax
import jax.numpy as jnp

from lm.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    Raises:
      UsageError: a value out of range.
    """

    temperature: float = 1.0  # 0: the most likely token (greedy)
    top_k: int = 0  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the smallest set with at least this probability (Holtzman et al. 2020)

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature}: expected 0 (greedy) or more.")
        if self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k}: expected 0 (all) or more.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: expected more than 0 and at most 1.")

    def arrays(self) -> dict[str, jax.Array]:
        """Return the values as traced inputs: changing them does not recompile."""
        return {
            "temperature": jnp.float32(self.temperature),
            "top_k": jnp.int32(self.top_k),
            "top_p": jnp.float32(self.top_p),
        }


def filter_logits(logits_BV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Set the logits outside the top k and outside the nucleus of mass p to minus infinity.

    Top-k comes first and the nucleus is taken of what is left, as in Hugging Face. The most
    likely token always stays.
    """
    vocab = logits_BV.shape[-1]
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    rank_1V = jnp.arange(vocab)[None, :]
    kept_BV = rank_1V < jnp.where(top_k > 0, top_k, vocab)
    probability_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV &= (before_BV < top_p) | (top_p >= 1)
    kept_BV |= rank_1V == 0
    smallest_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)


def sample(logits_BV: jax.Array, keys_B: jax.Array, settings: dict[str, jax.Array]) -> jax.Array:
    """Return one token id per row, each drawn with its own key; temperature 0 takes the most likely."""
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    temperature = settings["temperature"]
    scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1.0)
    filtered_BV = filter_logits(scaled_BV, settings["top_k"], settings["top_p"])
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, filtered_BV)
    return jnp.where(temperature > 0, drawn_B, greedy_B).astype(jnp.int32)
