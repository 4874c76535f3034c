"""Benchmarks, and plans of a train step for devices that aren't attached."""
