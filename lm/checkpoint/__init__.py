"""Checkpoints: written by Orbax, opened on any mesh, and read without JAX by `reader`."""
