"""Images with captions, and training batches."""
