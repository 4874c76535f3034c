"""Upper limits for counts in configs, far above real networks: absurd files are refused before they take memory."""

MOST_STAGES = 8
MOST_LAYERS = 64
"""Layers of a stage, of a transformer or of a text encoder."""
MOST_BLOCKS = 192
"""ResNets and transformer layers of a U-Net (SDXL's has 87), ResNets of an autoencoder; each takes 20 ms to trace."""
MOST_CHANNELS = 2**15
MOST_PIXELS = 2**14
"""Of a side."""
MOST_POSITIONS = 2**14
"""Of a text encoder."""
MOST_TOKENS = 2**22
"""Of a vocabulary."""
MOST_NOISE_LEVELS = 2**16
