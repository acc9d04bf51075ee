"""Devices, mesh and shardings, laid over the model from outside."""
