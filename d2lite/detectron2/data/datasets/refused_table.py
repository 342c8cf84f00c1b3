"""Lists of classes that the lite runtime does not carry."""
from collections.abc import Sequence

from detectron2._lite import NotInLiteRuntime


class RefusedTable(Sequence):
    """Can be imported; looking into it raises NotInLiteRuntime."""

    def __init__(self, name: str, module: str):
        self._name = f"{module}.{name}"

    def __len__(self):
        raise NotInLiteRuntime(self._name)

    def __getitem__(self, index):
        raise NotInLiteRuntime(self._name)
