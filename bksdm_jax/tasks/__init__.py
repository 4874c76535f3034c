"""What the trainer can be given to train."""
