"""Whole experiments on the shapes world: students beside each other, from pruning to the report."""
