"""What a process holds and gives back, and devices whose memory doesn't suffice."""

import jax
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.memory import explain_out_of_memory, give_back, resident

_MIB = 2**20


def test_resident_memory_is_what_was_touched() -> None:
    give_back()
    before = resident()
    touched = np.ones(200 * _MIB, np.uint8)
    assert 190 * _MIB < resident() - before < 300 * _MIB
    del touched
    give_back()
    assert resident() - before < 100 * _MIB


def test_a_device_without_enough_memory_is_one_line() -> None:
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1T")
    named = "Out of memory allocating 1T.*raise accumulation$"
    with pytest.raises(InputError, match=named), explain_out_of_memory("raise accumulation"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explain_out_of_memory("raise accumulation"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
