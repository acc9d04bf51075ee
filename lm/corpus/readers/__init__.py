"""Readers: what turns a file of a raw corpus into records."""
