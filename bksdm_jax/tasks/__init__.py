"""Tasks for the trainer."""
