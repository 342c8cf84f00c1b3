"""Reading pickled weights without running what a stranger may have put into the file."""
import collections
import io
import pickle
from typing import IO, Any

import numpy as np
import torch


def _load_storage(data: bytes) -> Any:
    """The storage of a pickled tensor, which is a torch file inside the pickle; read as strictly as any other."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


# The functions that numpy's own pickles call, under the module names of numpy 1 and numpy 2.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]

_BUILTINS = (set, frozenset, bytearray, complex, int, float, bool, list, dict, tuple)

_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),  # how protocol 2 writes bytes
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.multiarray", "scalar"): _SCALAR for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("numpy.core", "numpy._core")},
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _BUILTINS},
}

# What torch.load needs to be told to accept in a .pth beside tensors: numpy numbers and arrays.
NUMPY_GLOBALS = [_RECONSTRUCT, _SCALAR, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdFD"}]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}, and only containers, text, numbers, numpy arrays and tensors are "
                "read from pickles. If you trust its origin, convert it to .pth or .safetensors first."
            ) from None


def load(stream: IO[bytes]) -> Any:
    """Unpickles what is allowed, else raises UnpicklingError; byte strings of Python 2 become latin-1 text."""
    return _Unpickler(stream, encoding="latin1").load()
