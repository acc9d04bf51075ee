"""Attention by NVIDIA's cuDNN, where it honours the masks; what it does not is said in `lm.capabilities.ATTENTION`."""

import jax

from lm.kernels.flash_attention.options import Options


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, options: Options, implementation: str = "cudnn"
) -> jax.Array:
    """Return `out_BTNH`, differentiable by cuDNN's own backward pass.

    Args:
      q_BTNH, k_BSKH, v_BSKH: bf16 or fp16, T = S.
      options: without a soft cap.
      implementation: of `jax.nn.dot_product_attention`.
    """
    window = options.window
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=options.scale,
        is_causal=options.causal or window is not None,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
