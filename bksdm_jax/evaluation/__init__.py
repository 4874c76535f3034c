"""Scores of a model's images: from a folder, straight from the sampler, or during training."""
