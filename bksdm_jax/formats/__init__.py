"""What files look like: configs, names and layouts of weights, and the files that hold them."""
