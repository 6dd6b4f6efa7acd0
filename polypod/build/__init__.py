"""Container images and model environments, all from a model's declaration."""
