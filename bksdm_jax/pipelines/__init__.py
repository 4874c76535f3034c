"""Pipelines: their families, reading, writing, the hub, model cards."""
