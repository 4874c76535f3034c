"""From what people have on disk to a set that training reads."""
