"""The forms in which people have images with captions; one reader for preparation and training."""
