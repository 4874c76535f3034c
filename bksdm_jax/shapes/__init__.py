"""A small world of coloured shapes with captions, whose every picture can be read back."""
