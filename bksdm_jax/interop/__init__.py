"""Comparison with PyTorch Diffusers, which only this package imports (extra `interop`)."""
