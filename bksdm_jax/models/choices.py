"""The names of implementations of attention and norms, and of remat policies; nothing here imports JAX."""

from bksdm_jax.base.errors import known_name

ATTENTION = ("auto", "xla", "chunked", "cudnn", "cudnn_padded", "flash", "splash")
"""Keys of `attend.IMPLEMENTATIONS`."""
NORMS = ("xla", "pallas")
"""Who computes the sums of group normalisation: XLA, or kernels for NVIDIA GPUs (`norm_kernels`)."""

_KINDS = ("resnet", "attention", "downsampler", "upsampler")
REMAT: dict[str, dict[str, str]] = {
    "none": {},
    "products": dict.fromkeys(_KINDS, "products"),
    "attention": {"attention": "inputs"},
    "blocks": dict.fromkeys(_KINDS, "inputs"),
    "full": {"stage": "inputs"},
}
"""Name -> kind of block, or `stage` -> what is stored of it: its `inputs`, or these and `products`; others store all.

`products` stores the outputs of convolutions and matrix products and recomputes norms, activations and casts, which is
cheap. `attention` stores only the inputs of transformers. `blocks` stores only the inputs of blocks, which costs about
two thirds of a forward pass, since the last product of a block isn't recomputed. `full` stores only the inputs of
stages, which costs one forward pass.
"""


def require_attention_name(name: str) -> None:
    """Raises `InputError` unless `name` is one of `ATTENTION`; `require_attention` checks the device too."""
    known_name("config", "attention", name, ATTENTION)


def require_norms_name(name: str) -> None:
    """Raises `InputError` unless `name` is one of `NORMS`; `require_norms` checks the device too."""
    known_name("config", "norms", name, NORMS)


def require_remat(name: str) -> None:
    """Raises `InputError` unless `name` is a key of `REMAT`."""
    known_name("config", "remat", name, REMAT)
