"""Pages about finished experiments, made from the files that these leave."""
