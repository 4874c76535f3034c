"""Equal layers of a network are traced once."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn

_INTERCEPTED = contextvars.ContextVar("intercepted", default=False)


def traced_once(call: Callable[..., Any]) -> Callable[..., Any]:
    """A module's method, above `nn.compact`, which Python runs once for all modules of equal settings and shapes.

    It is a jitted function in the program, which XLA inlines. Tracing a distillation update of SD v1's Base student
    takes half as long so. Within `intercepting` each call is traced.
    """
    jitted = nn.jit(call)

    @functools.wraps(call)
    def chosen(module: nn.Module, *inputs: Any) -> Any:
        return (call if _INTERCEPTED.get() else jitted)(module, *inputs)

    return chosen


@contextlib.contextmanager
def intercepting(interceptor: Callable[..., Any]) -> Iterator[None]:
    """`nn.intercept_methods`, for an interceptor that has to meet every call of every module."""
    token = _INTERCEPTED.set(True)
    try:
        with nn.intercept_methods(interceptor):
            yield
    finally:
        _INTERCEPTED.reset(token)
