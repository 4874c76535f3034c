"""Scores of images: what they show, how well they fit their captions, how far they are from real ones."""
