"""Names that pickles of PyTorch checkpoints refer to, as module and name; none of them is ever resolved."""

import numpy as np

from bksdm_jax.formats.stored import EIGHT_BITS, FLOATS

STORAGES = {
    "torch DoubleStorage": FLOATS["float64"],
    "torch FloatStorage": FLOATS["float32"],
    "torch HalfStorage": FLOATS["float16"],
    "torch BFloat16Storage": FLOATS["bfloat16"],
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
    **dict.fromkeys(("torch UntypedStorage", "torch.storage UntypedStorage"), np.dtype(np.uint8)),
}
UNTYPED = {f"torch {name}": dtype for name, dtype in EIGHT_BITS.items()}
"""Dtypes whose tensors lie in untyped storages."""

UNTYPED_TENSOR = "torch._utils _rebuild_tensor_v3"
TENSORS = {"torch._utils _rebuild_tensor": 4, "torch._utils _rebuild_tensor_v2": 6, UNTYPED_TENSOR: 7}
"""Functions that make a tensor -> how many arguments they need; one more may follow."""

PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch.nn.parameter Parameter",
)
"""Functions whose first argument is the tensor."""

WITH_ATTRIBUTES = "torch._tensor _rebuild_from_type_v2"
SIZE = "torch Size"
TABLES = ("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict")

_BUILTINS = "bool bytearray bytes complex float frozenset int list long object range set slice str tuple unicode xrange"
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
_ARRAYS = "scalar _reconstruct"
_INERT = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # of Python 2
    "_codecs": "encode",  # bytes, as protocol 2 writes them
    "argparse": "Namespace",
    "collections": "Counter deque",
    "numpy": "dtype ndarray bool_ float16 float32 float64 int32 int64 uint8",
    "numpy.core.multiarray": _ARRAYS,
    "numpy._core.multiarray": _ARRAYS,
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "torch": f"device Tensor {_DTYPES}",
    "typing": "Any Dict List Optional Tuple Union",
}
"""Modules -> names of objects that training programs write beside the tensors, and that are passed over."""

_INERT_PACKAGES = ("lightning", "omegaconf", "pytorch_lightning")
_INERT_NAMES = {f"{module} {name}" for module, names in _INERT.items() for name in names.split()}
_KNOWN = {*STORAGES, *UNTYPED, *TENSORS, *PARAMETERS, WITH_ATTRIBUTES, SIZE, *TABLES}


def is_inert(name: str) -> bool:
    """Whether it stands for an object that is passed over."""
    return name in _INERT_NAMES or name.partition(" ")[0].partition(".")[0] in _INERT_PACKAGES


def is_known(name: str) -> bool:
    """Whether it may occur."""
    return name in _KNOWN or is_inert(name)
