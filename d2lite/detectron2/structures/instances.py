"""Everything known about the instances of one image."""
import itertools
from typing import Any

import torch


class Instances:
    """Named fields of equal length, one element an instance; a field is set and read as an attribute.

    A field is a tensor or anything with ``len`` and indexing, such as Boxes, BitMasks or a list. Use
    ``instances.has("scores")`` to ask for one: instances are not iterable, so ``in`` does not work.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)"""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"These Instances have no field {name!r}.")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; AssertionError if its length is not that of the other fields."""
        length = len(value)  # what has no length is no field
        if self._fields:
            assert length == len(self), f"A field {name!r} of length {length} does not fit {len(self)} instances."
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field; KeyError if it does not exist."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """A field; KeyError if it does not exist."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; changing the dict changes the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """The same instances, every field that has ``to`` moved by it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "Instances":
        """The selected instances: an int selects one (IndexError), all else is handed to the indexing of the fields."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"There is no instance {item} among {len(self)}.")
            item = slice(item, None, len(self))
        selected = Instances(self._image_size)
        for name, value in self._fields.items():
            selected.set(name, value[item])
        return selected

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self):
        raise NotImplementedError("Instances cannot be iterated over; iterate over a field or over range(len(...)).")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """All instances of a list with one image size and the same fields (ValueError if one cannot be joined)."""
        assert len(instance_lists) > 0, "Instances.cat needs at least one element."
        assert all(isinstance(each, Instances) for each in instance_lists), "Instances.cat takes Instances only."
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            sizes = first.image_size, other.image_size
            assert sizes[0] == sizes[1], f"Cannot concatenate instances of images {sizes[0]} and {sizes[1]}."
        joined = Instances(first.image_size)
        for name in first.get_fields():
            joined.set(name, _join(name, [each.get(name) for each in instance_lists]))
        return joined

    def __str__(self) -> str:
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        count = len(self) if self._fields else 0
        height, width = self._image_size
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _join(name: str, values: list) -> Any:
    kind = type(values[0])
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], list):
        return list(itertools.chain(*values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"The field {name!r} cannot be concatenated: {kind.__name__} has no 'cat'.")
