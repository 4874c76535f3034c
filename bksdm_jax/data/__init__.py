"""Images with captions, and the stream of training batches."""
