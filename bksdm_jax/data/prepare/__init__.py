"""Converts images with captions into training datasets."""
