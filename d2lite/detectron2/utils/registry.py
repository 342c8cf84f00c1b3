"""Registries, and the way between an object and its dotted name."""
import pydoc
import sys
from importlib import import_module
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(t: Any) -> str:
    """The shortest dotted name under which ``locate`` finds ``t``.

    A class is mostly re-exported by the package above its file; that public name survives a moved file.
    """
    module_parts = t.__module__.split(".")
    for depth in range(1, len(module_parts)):
        package = ".".join(module_parts[:depth])
        if _follow(sys.modules.get(package), t.__qualname__.split(".")) is t:
            return f"{package}.{t.__qualname__}"
    return f"{t.__module__}.{t.__qualname__}"


def locate(name: str) -> Any:
    """The object behind a dotted name such as ``torch.optim.SGD``; ImportError if there is none."""
    found = pydoc.locate(name)
    if found is None:
        # pydoc gives up where a package hides a submodule behind an attribute of the same name.
        found = _import_prefix_and_follow(name)
    if found is None:
        raise ImportError(f"No module, class or function is called {name!r}.")
    return found


def _import_prefix_and_follow(name: str) -> Any:
    """Import the longest importable prefix of ``name`` and follow the rest by attribute; None where that ends."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        try:
            module = import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        return _follow(module, parts[depth:])
    return None


def _follow(found: Any, attributes: list[str]) -> Any:
    for attribute in attributes:
        found = getattr(found, attribute, None)
    return found
