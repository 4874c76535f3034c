"""Noise schedule, targets, samplers and guidance; nothing here imports a network."""
