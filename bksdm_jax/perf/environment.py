"""Environment variables for compiling for TPUs without one, to be set before JAX is imported."""

import os


def expect_no_tpu() -> None:
    """Keeps libtpu from looking for a TPU, from warning that there is none, and from locking out other processes."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"}  # any will do
