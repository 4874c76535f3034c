"""Flax modules only, and the table of presets; nothing here knows of training, files or configuration."""
