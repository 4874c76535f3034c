"""Experiments that compare several students, from pruning to the report."""
