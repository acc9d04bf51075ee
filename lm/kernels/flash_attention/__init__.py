"""Attention in blocks, with O(T) memory: `flash_attention` and its backends."""
