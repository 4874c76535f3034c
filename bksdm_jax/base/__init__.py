"""Foundations: errors, files, paths, processes, progress, number formats."""
