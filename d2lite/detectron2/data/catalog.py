"""The two global phone books: what a dataset's records are, and what is known about it besides.

`DatasetCatalog` maps a name to a function that returns the records; `MetadataCatalog` maps the same name to the things
that all records share (class names, colours, where the json lies).
"""
import logging
import types
from collections import UserDict
from typing import Any, Callable

from detectron2.utils.logger import log_first_n


class _Catalog(UserDict):
    """What both catalogs have besides `get`."""

    def list(self) -> list[str]:
        return list(self.keys())

    def remove(self, name: str) -> None:
        self.pop(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({', '.join(self)})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Name -> function without arguments. The function runs at every `get`, so registration itself costs nothing."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Remember `func`, which returns the records (a list of dicts, or a torch Dataset), under a new name."""
        assert callable(func), f"DatasetCatalog.register('{name}', ...) needs a function, got {type(func).__name__}."
        assert name not in self, f"The dataset '{name}' is registered already; remove() it, or choose another name."
        self[name] = func

    def get(self, name: str) -> Any:
        """Call the function registered for `name` and return what it gives."""
        if name not in self:
            raise KeyError(f"No dataset '{name}' is registered. Registered are: {', '.join(self) or 'none'}.")
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Write-once attributes of one dataset: an attribute may be set again only to an equal value."""

    name: str = "N/A"

    # Spellings of before 2019, answered with a hint.
    _RENAMED = {
        "class_names": "thing_classes",
        "stuff_class_names": "stuff_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    }

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            new = self._RENAMED[key]
            log_first_n(logging.WARNING, f"Metadata '{key}' is now called '{new}'.", n=10)
            return getattr(self, new)
        if key.startswith("__"):  # what pickle and copy probe for is no mistake of the user's
            raise AttributeError(key)
        known = ", ".join(self.__dict__) or "nothing"
        raise AttributeError(f"The metadata of '{self.name}' has no '{key}'; it has {known}.")

    def __setattr__(self, key: str, value: Any) -> None:
        key = self._RENAMED.get(key, key)
        old = self.__dict__.get(key, value)
        assert old == value, f"'{key}' of dataset '{self.name}' is {old!r} and cannot become {value!r}."
        super().__setattr__(key, value)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns self, so that calls can be chained."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` where it is missing."""
        return getattr(self, key, default)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all attributes; changing it changes nothing here."""
        return dict(self.__dict__)


class _MetadataCatalog(_Catalog):
    """Name -> `Metadata`, made on first use."""

    def get(self, name: str) -> Metadata:
        """The one Metadata object of `name`, for whoever asks."""
        assert name, "A dataset's name must not be empty."
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
