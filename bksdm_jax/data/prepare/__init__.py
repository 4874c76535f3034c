"""Makes datasets for training of images and captions."""
