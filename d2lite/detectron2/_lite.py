"""Names that the lite runtime does not implement: they import, and refuse with one clear error when called.

Scripts import many names at their top without using them, so a missing name would break what works otherwise.
"""
from collections.abc import Sequence

REAL_DETECTRON2 = "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"


class NotInLiteRuntime(NotImplementedError):
    """Raised by whatever exists only in a full Detectron2."""

    def __init__(self, name: str):
        super().__init__(
            f"{name} is not part of the lite Detectron2 runtime that is installed here. "
            f"To use it, install the full Detectron2 (needs a C++ compiler); it replaces this one:\n  {REAL_DETECTRON2}"
        )
        self.missing = name

    def __reduce__(self):
        return type(self), (self.missing,)


def refused(name: str, module: str):
    """A function ``module.name`` that raises :class:`NotInLiteRuntime` when called with anything."""

    def refuse(*args, **kwargs):
        raise NotInLiteRuntime(f"{module}.{name}")

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    refuse.__module__ = module
    refuse.__doc__ = f"Not in the lite runtime; calling it raises {NotInLiteRuntime.__name__}."
    return refuse


class _RefusingType(type):
    """Class methods of a refused class refuse too, whatever they are called."""

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return refused(f"{cls.__name__}.{name}", cls.__module__)


def refused_class(name: str, module: str, *bases: type):
    """A class ``module.name`` that can be named, subclassed and tested with ``isinstance``, but not constructed."""

    def refuse(cls, *args, **kwargs):
        raise NotInLiteRuntime(f"{module}.{name}")

    doc = f"Not in the lite runtime; constructing it raises {NotInLiteRuntime.__name__}."
    return _RefusingType(name, bases, {"__new__": refuse, "__module__": module, "__doc__": doc})


class RefusedTable(Sequence):
    """A list or a dict that can be imported; looking into it raises :class:`NotInLiteRuntime`."""

    def __init__(self, name: str, module: str):
        self._name = f"{module}.{name}"

    def __getitem__(self, *index):
        raise NotInLiteRuntime(self._name)

    __len__ = __getitem__
