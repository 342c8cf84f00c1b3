import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

safe_pickle = pytest.importorskip(
    "detectron2.checkpoint.safe_pickle", reason="only the lite runtime refuses pickles that run code"
)


def reload(content, protocol=2):
    return safe_pickle.load(io.BytesIO(pickle.dumps(content, protocol=protocol)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        {"a": [1, 2.5, None, True, (1 + 2j)], "b": ("text", b"bytes", {1, 2}, frozenset([3]), bytearray(b"x"))},
        OrderedDict(x=1),
        np.float32(1.5),
        np.int64(7),
    ],
)
def test_plain_content(content, protocol):
    loaded = reload(content, protocol)
    assert loaded == content
    assert type(loaded) is type(content)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", "<U3"])
def test_arrays(dtype, protocol):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    loaded = reload({"x": array}, protocol)["x"]
    assert loaded.dtype == array.dtype
    assert (loaded == array).all()


def test_arrays_under_numpy_1_names():
    text = pickle.dumps(np.arange(3.0), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in text
    assert safe_pickle.load(io.BytesIO(text)).tolist() == [0, 1, 2]


def test_tensors_and_parameters():
    content = {"t": torch.arange(4.0).reshape(2, 2), "p": torch.nn.Parameter(torch.ones(2)), "h": torch.ones(1).half()}
    loaded = reload(content)
    assert all(torch.equal(loaded[name], value) for name, value in content.items())
    assert loaded["h"].dtype == torch.float16


class Runs:
    """A pickle of this would run a command."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "attack",
    [
        Runs(os.system, "true"),
        Runs(eval, "1"),
        Runs(getattr, "", "join"),
        Runs(np.load, "x"),
        Runs(torch.load, "x"),
        Runs(__import__, "os"),
        {"model": {"w": Runs(os.getcwd)}},
    ],
)
def test_code_is_refused(attack, protocol):
    with pytest.raises(pickle.UnpicklingError, match="asks for"):
        reload(attack, protocol)


def test_code_inside_a_tensors_storage_is_refused():
    inner = io.BytesIO()
    torch.save(Runs(os.getcwd), inner)
    with pytest.raises(pickle.UnpicklingError):
        reload(Runs(torch.storage._load_from_bytes, inner.getvalue()))
