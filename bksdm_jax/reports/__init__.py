"""Pages about finished experiments, made from the experiments' files."""
