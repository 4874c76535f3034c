"""Beside PyTorch Diffusers, which only this package imports: the extra `interop`."""
