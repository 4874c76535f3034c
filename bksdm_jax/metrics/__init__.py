"""Scores of images: their content, fit to captions and distance from real images."""
