"""Axis-aligned boxes: how they are written, a container for those of one image, and how they overlap."""
from collections.abc import Iterator
from enum import IntEnum, unique

import numpy as np
import torch

from .rows import Rows


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are meant: ABS in pixels, REL in fractions of the image; angles in degrees, ccw."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4  # centre, size, angle

    @staticmethod
    def convert(box, from_mode: "BoxMode", to_mode: "BoxMode"):
        """Rewrite one box, a list or tuple of 4 or 5 numbers, or an (N, 4) or (N, 5) array or tensor.

        The result has the same type and dtype and new memory, but is ``box`` itself if the modes agree. A list or tuple
        of floats passes through float32. AssertionError for relative modes; NotImplementedError for other pairs than
        XYXY <-> XYWH, XYWHA -> XYXY and XYWH -> XYWHA.
        """
        if from_mode == to_mode:
            return box
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        relative = {BoxMode.XYXY_REL, BoxMode.XYWH_REL} & {from_mode, to_mode}
        assert not relative, "Relative boxes are not supported: converting them needs the image's size."
        if isinstance(box, (list, tuple)):
            assert len(box) in (4, 5), f"A box has 4 or 5 numbers, not {len(box)}; many boxes go in one array."
            return type(box)(_convert_rows(torch.tensor(box)[None], from_mode, to_mode)[0].tolist())
        if isinstance(box, np.ndarray):
            return _convert_rows(torch.from_numpy(box), from_mode, to_mode).numpy()
        return _convert_rows(box, from_mode, to_mode)


def _convert_rows(rows: torch.Tensor, from_mode: BoxMode, to_mode: BoxMode) -> torch.Tensor:
    new = rows.clone()
    match from_mode, to_mode:
        case BoxMode.XYWH_ABS, BoxMode.XYXY_ABS:
            new[:, 2:4] += new[:, 0:2]
        case BoxMode.XYXY_ABS, BoxMode.XYWH_ABS:
            new[:, 2:4] -= new[:, 0:2]
        case BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS:
            assert rows.shape[-1] == 5, f"XYWHA boxes have 5 numbers, not {rows.shape[-1]}."
            new = _enclose_rotated(rows.double()).to(rows.dtype)
        case BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS:
            assert rows.shape[-1] == 4, f"XYWH boxes have 4 numbers, not {rows.shape[-1]}."
            corner, size = rows.double().split(2, dim=1)
            new = torch.cat([corner + size / 2, size, size.new_zeros(len(rows), 1)], dim=1).to(rows.dtype)
        case _:
            raise NotImplementedError(f"No conversion of boxes from {from_mode.name} to {to_mode.name} exists.")
    return new


def _enclose_rotated(boxes: torch.Tensor) -> torch.Tensor:
    """(N, 5) centre, size, angle -> (N, 4) smallest upright boxes around them."""
    angles = torch.deg2rad(boxes[:, 4])
    cos, sin = angles.cos().abs(), angles.sin().abs()
    width, height = boxes[:, 2], boxes[:, 3]
    half = torch.stack([cos * width + sin * height, cos * height + sin * width], dim=1) / 2
    return torch.cat([boxes[:, 0:2] - half, boxes[:, 0:2] + half], dim=1)


class Boxes(Rows):
    """The boxes of one image: ``tensor`` is float32 (N, 4), x0 y0 x1 y1 in pixels; (0, 4) from one without elements."""

    def __init__(self, tensor: torch.Tensor):
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        assert tensor.dim() == 2 and tensor.shape[-1] == 4, f"Boxes are an (N, 4) tensor, not {tuple(tensor.shape)}."
        self.tensor = tensor

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def area(self) -> torch.Tensor:
        """(N,) areas in pixels; the product of two negative sides counts as positive."""
        return (self.tensor[:, 2:] - self.tensor[:, :2]).prod(dim=1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move the corners into an image of ``(height, width)``, in this object; AssertionError unless finite."""
        assert torch.isfinite(self.tensor).all(), "Cannot clip boxes that have infinite or NaN coordinates."
        height, width = box_size
        limits = self.tensor.new_tensor([width, height, width, height])
        self.tensor = self.tensor.clamp(torch.zeros_like(limits), limits)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """(N,) bool: both sides are longer than ``threshold``."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """(N,) bool: lies in an image of ``(height, width)`` enlarged by ``boundary_threshold`` on every side."""
        limits = self.tensor.new_tensor(box_size[::-1]) + boundary_threshold
        return ((self.tensor[:, :2] >= -boundary_threshold) & (self.tensor[:, 2:] < limits)).all(dim=1)

    def get_centers(self) -> torch.Tensor:
        """(N, 2) x, y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates in place: whoever shares the tensor sees it."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """All boxes of a list or tuple, with their own memory; none for an empty list."""
        return super().cat(boxes_list) if len(boxes_list) else cls(torch.empty(0))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) areas common to each pair."""
    a, b = boxes1.tensor[:, None], boxes2.tensor[None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    return sides.clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over union; 0 where nothing is common, also for boxes without area."""
    common = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area()[None] - common
    return torch.where(common > 0, common / union, common.new_zeros(()))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over the area of the second box."""
    common = pairwise_intersection(boxes1, boxes2)
    return torch.where(common > 0, common / boxes2.area()[None], common.new_zeros(()))


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """(N, M, 4) distances of (N, 2) points to the left, top, right and bottom side of each box, positive inwards."""
    points, corners = points[:, None], boxes.tensor[None]
    return torch.cat([points - corners[..., :2], corners[..., 2:] - points], dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N,) intersection over union of the i-th box with the i-th box; AssertionError if the numbers differ."""
    assert len(boxes1) == len(boxes2), f"Cannot pair {len(boxes1)} boxes with {len(boxes2)} one by one."
    a, b = boxes1.tensor, boxes2.tensor
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return common / (boxes1.area() + boxes2.area() - common)
