"""Generation with a key/value cache: one prefill, then a jitted loop of decoding steps."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm import hosts
from lm.errors import UsageError
from lm.infer.sampling import SamplingConfig, sample
from lm.kernels.linear import in_compute_type

_DEFAULT = SamplingConfig()


class Generator:
    """Continues prompts.

    Args:
      model: a `Transformer`.
      vocab_size: the tokenizer's; ids beyond it pad the model's vocabulary and are never drawn.
      eot_id: the token that ends a document, and a continuation.
      chunk: tokens decoded per dispatch; each chunk is one jitted loop, and what streaming shows at a time.
    """

    def __init__(self, model, vocab_size: int, eot_id: int, *, chunk: int = 16):
        self._model = model
        self._vocab_size = vocab_size
        self._eot_id = eot_id
        self._chunk = chunk
        exact = partial(in_compute_type, compute=model.precision.compute)
        self._prefill = jax.jit(exact(self._prefill_fn), static_argnames="capacity")
        self._decode = jax.jit(exact(self._decode_fn), donate_argnames="cache")

    def _next(self, params, hidden_BTD, keys_B, number, settings):
        logits_BV = self._model.logits(params, hidden_BTD[:, -1:])[:, 0]
        allowed_1V = jnp.arange(logits_BV.shape[-1])[None, :] < self._vocab_size
        step_keys_B = jax.vmap(partial(jax.random.fold_in, data=number))(keys_B)
        return sample(jnp.where(allowed_1V, logits_BV, -jnp.inf), step_keys_B, settings)

    def _prefill_fn(self, params, tokens_BT, lengths_B, keys_B, settings, *, capacity):
        B, T = tokens_BT.shape
        positions_BT = jnp.arange(T)[None, :] - (T - lengths_B)[:, None]  # prompts are padded on the left
        segment_ids_BT = (positions_BT >= 0).astype(jnp.int32)
        cache = self._model.init_cache(B, capacity)
        hidden_BTD, cache, _ = self._model.hidden(
            params, tokens_BT, jnp.maximum(positions_BT, 0), segment_ids_BT, cache=cache
        )
        return self._next(params, hidden_BTD, keys_B, 0, settings), cache

    def _decode_fn(self, params, cache, token_B, position_B, keys_B, number, settings):
        def body(carry, i):
            token_B, cache = carry
            hidden_BTD, cache, _ = self._model.hidden(
                params, token_B[:, None], (position_B + i)[:, None], jnp.ones_like(token_B)[:, None], cache=cache
            )
            token_B = self._next(params, hidden_BTD, keys_B, number + i, settings)
            return (token_B, cache), token_B

        (token_B, cache), tokens_TB = jax.lax.scan(body, (token_B, cache), jnp.arange(self._chunk))
        return token_B, cache, tokens_TB.T

    def stream(
        self,
        params,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: SamplingConfig = _DEFAULT,
        seed: int = 0,
    ) -> Iterator[list[list[int]]]:
        """Yield the new token ids of each row, a few at a time; a row that met `eot` yields no more.

        A row's draws depend on the seed, its number and its own prompt only, not on the batch.

        Args:
          params: the model's parameters.
          prompts: token ids, at least one each (start a document with the tokenizer's `eot_id`).
          max_new_tokens: per row.
          sampling: temperature, top-k, top-p.
          seed: of the draws.

        Raises:
          UsageError: an empty prompt, or more positions than a model with learned positions has.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        if not len(lengths) or lengths.min() < 1:
            raise UsageError("a prompt has no tokens; start it with the end-of-text token.")
        config, longest = self._model.config, int(lengths.max())
        if config.positions == "learned" and longest + max_new_tokens > config.max_positions:
            raise UsageError(
                f"the prompt's {longest} tokens and {max_new_tokens} new ones need more than the model's "
                f"{config.max_positions} learned positions; shorten the prompt or lower --max-new-tokens."
            )
        width = max(16, 1 << (longest - 1).bit_length())  # few widths, few compilations
        steps = -(-max_new_tokens // self._chunk) * self._chunk
        tokens_BT = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, width - len(prompt) :] = prompt
        settings = sampling.arrays()
        keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(prompts)))
        token_B, cache = self._prefill(params, tokens_BT, lengths, keys_B, settings, capacity=width + steps)
        new_BT = hosts.fetch(token_B)[:, None]
        produced, ended = 0, np.zeros(len(prompts), bool)
        while True:
            rows: list[list[int]] = []
            for row, ids in enumerate(new_BT[:, : max_new_tokens - produced].tolist()):
                if self._eot_id in ids:
                    ids = ids[: ids.index(self._eot_id)]
                    rows.append([] if ended[row] else ids)
                    ended[row] = True
                else:
                    rows.append([] if ended[row] else ids)
            yield rows
            produced += new_BT.shape[1]
            if produced >= max_new_tokens or ended.all():
                return
            token_B, cache, new_BT = self._decode(
                params, cache, token_B, lengths + (produced - 1), keys_B, produced, settings
            )
            new_BT = hosts.fetch(new_BT)

    def __call__(self, params, prompts, **options) -> list[list[int]]:
        """Return each row's new token ids; arguments as `stream`."""
        out: list[list[int]] = [[] for _ in prompts]
        for rows in self.stream(params, prompts, **options):
            for row, ids in zip(out, rows, strict=True):
                row.extend(ids)
        return out


def stream_text(tokenizer, chunks: Iterator[list[list[int]]], show: Callable[[str], None]) -> str:
    """Show the first row's text as its ids arrive, never a half UTF-8 character, and return all of it."""
    decoder, text = tokenizer.stream(), []
    for rows in chunks:
        text.append(decoder.push(*rows[0]))
        show(text[-1])
    text.append(decoder.flush())
    show(text[-1])
    return "".join(text)
