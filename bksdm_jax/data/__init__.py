"""Images with captions, and the batches that training takes of them."""
