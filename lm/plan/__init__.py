"""What a training run needs on hardware that is not here: memory, communication and time."""
