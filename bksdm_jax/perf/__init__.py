"""Benchmarks, and plans of a training step for devices that are not here."""
