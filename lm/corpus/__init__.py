"""From raw dumps to documents worth training on: read, clean, filter, score, deduplicate, mix; `lm.data` takes over there."""
