"""Small ground: errors, files, paths, processes, progress, number formats."""
