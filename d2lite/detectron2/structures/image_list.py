"""Images of different sizes in one tensor."""
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F


class ImageList:
    """A batch of images, (N, H, W) or (N, C, ..., H, W), padded at the right and bottom; image_sizes are unpadded."""

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor, self.image_sizes = tensor, image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx) -> torch.Tensor:
        """One image without its padding, as a view."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """As :meth:`torch.Tensor.to`."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor], size_divisibility: int = 0, pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images, (H_i, W_i) or (C, ..., H_i, W_i), to the size of the largest; AssertionError if they do not fit.

        Both sides become multiples of `size_divisibility`. A backbone's `padding_constraints` may replace it, and by
        "square_size", if positive, the sides of the largest image; a larger image is cropped to that.
        """
        assert isinstance(tensors, (list, tuple)) and len(tensors) > 0, "from_tensors needs a list of images."
        for image in tensors:
            assert isinstance(image, torch.Tensor), f"An image is a tensor, not {type(image).__name__}."
            shapes = [tuple(image.shape), tuple(tensors[0].shape)]
            assert shapes[0][:-2] == shapes[1][:-2], f"Images of shapes {shapes} do not fit into one batch."
        image_sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]

        constraints = padding_constraints or {}
        height, width = (max(sides) for sides in zip(*image_sizes))
        if constraints.get("square_size", 0) > 0:
            height = width = constraints["square_size"]
        multiple = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = (-(-side // multiple) * multiple for side in (height, width))

        padded = [
            F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=pad_value)
            for image in tensors
        ]
        return ImageList(torch.stack(padded), image_sizes)
