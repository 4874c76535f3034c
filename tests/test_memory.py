"""What a process holds and gives back, and devices whose memory doesn't suffice."""

import subprocess
import sys

import jax
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.memory import explain_out_of_memory
from tests.conftest import ROOT

# In a process of its own: what earlier tests left may go at any time.
TOUCH = """
import numpy as np
from bksdm_jax.base.memory import give_back, resident

give_back()
before = resident()
touched = np.ones(200 * 2**20, np.uint8)
print(resident() - before)
del touched
give_back()
print(resident() - before)
"""


def test_resident_memory_is_what_was_touched() -> None:
    result = subprocess.run([sys.executable, "-c", TOUCH], cwd=ROOT, capture_output=True, text=True, check=True)
    held, kept = (int(line) / 2**20 for line in result.stdout.split())
    assert 190 < held < 300
    assert kept < 100


def test_a_device_without_enough_memory_is_one_line() -> None:
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1T")
    named = "Out of memory allocating 1T.*raise accumulation$"
    with pytest.raises(InputError, match=named), explain_out_of_memory("raise accumulation"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explain_out_of_memory("raise accumulation"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
