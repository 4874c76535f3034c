"""Losses, the train step, its state, sharding, checkpoints, and the one loop."""
