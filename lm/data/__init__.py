"""From text to batches: sources, splits, token shards, pack plans and the stateless loader. No JAX here."""
