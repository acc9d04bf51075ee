"""Attention in blocks, with O(T) memory, under one signature on every device."""

from lm.kernels.flash_attention.attention import flash_attention

__all__ = ["flash_attention"]
