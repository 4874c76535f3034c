"""Noise schedule, targets, samplers and guidance, independent of the networks."""
