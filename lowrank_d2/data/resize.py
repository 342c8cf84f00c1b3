"""Resizing to whole patches, for models that cut an image into squares."""
from typing import Sequence

import numpy as np
from detectron2.data import transforms as T


def size_in_multiples(height: int, width: int, short: int, longest: int, multiple: int) -> tuple[int, int]:
    """The size to which YOLOS brings an image: DETR's, with both sides rounded down to a multiple.

    The short side becomes `short`; or less, where the long side would exceed `longest` and gets that instead. Fractions
    of the long side are cut off where Detectron2 rounds to the nearest, which can make a patch of difference.

    Returns:
        (height, width), each at least `multiple`.
    """
    low, high = min(height, width), max(height, width)
    long = short * high // low
    if short * high > longest * low:
        short, long = round(longest * low / high), longest
    sides = (short, long) if height <= width else (long, short)
    return tuple(max(side // multiple, 1) * multiple for side in sides)


class ResizeToMultiple(T.Augmentation):
    """Resizes so that the short side is one of `shorts`, the long one at most `longest`, both whole multiples."""

    def __init__(self, shorts: Sequence[int], longest: int, multiple: int):
        super().__init__()
        self.shorts, self.longest, self.multiple = tuple(shorts), longest, multiple

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        size = size_in_multiples(height, width, int(np.random.choice(self.shorts)), self.longest, self.multiple)
        return T.ResizeTransform(height, width, *size)
