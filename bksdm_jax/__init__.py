"""Block-pruned, knowledge-distilled Stable Diffusion in JAX.

>>> import bksdm_jax
>>> teacher = bksdm_jax.load("shapes_teacher")
>>> student = bksdm_jax.prune(teacher, "bk_small")
>>> images = bksdm_jax.generate(student, ["a small red circle"], steps=12)
>>> bksdm_jax.save(student, "student")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bksdm_jax.api import Images, InputError, Pipeline, Student, generate, load, prune, save

__version__ = "0.1.0"
__all__ = ["Images", "InputError", "Pipeline", "Student", "generate", "load", "prune", "save"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: all modules of the package import this one first."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bksdm_jax import api  # noqa: PLC0415

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
