"""File formats: configs, names and layouts of weights, and the files that hold weights."""
