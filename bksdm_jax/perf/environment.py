"""What the TPU compiler's library reads from the environment, where there is no TPU: before JAX is imported."""

import os


def expect_no_tpu() -> None:
    """Keeps the library from looking for a TPU, and from refusing a second program beside it."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
