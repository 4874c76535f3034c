"""Pipelines: the family table, reading, writing, the hub, model cards."""
