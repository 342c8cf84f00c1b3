"""What boxes, bitmaps and keypoints of one image have in common: a tensor with one row an instance."""
from typing import Any

import torch


class Rows:
    """Instances as the rows of ``tensor``, which the constructor of a subclass takes and checks."""

    tensor: torch.Tensor

    def to(self, *args: Any, **kwargs: Any):
        """As :meth:`torch.Tensor.to`."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item):
        """The selected instances, for an int one instance; a view where torch's indexing gives a view."""
        selected = self.tensor[item][None] if isinstance(item, int) else self.tensor[item]
        assert selected.dim() == self.tensor.dim(), f"Indexing {type(self).__name__} with {item} gives no whole rows."
        return type(self)(selected)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    @classmethod
    def cat(cls, rows_list: list):
        """All instances of a list that is not empty; the rows must be of one shape."""
        assert isinstance(rows_list, (list, tuple)) and len(rows_list) > 0, f"{cls.__name__}.cat needs a list."
        assert all(isinstance(rows, cls) for rows in rows_list), f"{cls.__name__}.cat takes a list of {cls.__name__}."
        return type(rows_list[0])(torch.cat([rows.tensor for rows in rows_list], dim=0))
