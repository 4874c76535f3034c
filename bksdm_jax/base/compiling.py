"""Compiling several programs at once."""

from concurrent.futures import ThreadPoolExecutor

from jax.stages import Compiled, Lowered


def compile_beside(*programs: Lowered) -> list[Compiled]:
    """Compiles programs in a thread each: XLA leaves cores idle while it optimises a program as a whole."""
    with ThreadPoolExecutor(len(programs)) as pool:
        return list(pool.map(Lowered.compile, programs))
