"""Sweeps: variants of a config over seeds, run, kept in one folder, and judged."""
