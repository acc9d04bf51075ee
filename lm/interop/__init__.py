"""Other people's formats. No JAX here."""
