"""Block-pruned, knowledge-distilled Stable Diffusion in JAX."""

__version__ = "0.1.0"
