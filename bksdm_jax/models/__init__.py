"""Flax modules and their config dataclasses; independent of training, files and configuration."""
