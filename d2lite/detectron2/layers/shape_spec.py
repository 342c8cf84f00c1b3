"""What a module needs to know about a feature map before it has seen one."""
from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """The shape of a feature map; None is unknown or does not matter. ``stride`` is relative to the input image."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
