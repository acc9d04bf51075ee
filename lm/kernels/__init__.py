"""Pure functions on arrays: the matmuls, attention and loss that models are made of."""
