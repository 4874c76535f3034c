"""Distillation: a student learns from the teacher that it was cut from."""
