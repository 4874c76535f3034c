"""Distillation: a student learns from the teacher that it was pruned from."""
