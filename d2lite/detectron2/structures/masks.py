"""Instance masks of one image: as bitmaps, as polygons, and as small squares inside their boxes."""
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from detectron2.layers.roi_align import ROIAlign
from detectron2.utils.memory import retry_if_cuda_oom

from .boxes import Boxes


def polygon_area(x, y):
    """The area inside a polygon with corners ``x``, ``y`` (shoelace formula)."""
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool: the union of polygons, each a vector x0 y0 x1 y1 ... in pixels."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    runs = mask_util.frPyObjects([np.asarray(polygon).tolist() for polygon in polygons], height, width)
    return mask_util.decode(mask_util.merge(runs)).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """(mask_size, mask_size) bool: what polygons cover of ``box``, stretched to a square.

    Args:
        box: x0 y0 x1 y1.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    scale = np.array([mask_size / max(x1 - x0, 0.1), mask_size / max(y1 - y0, 0.1)])
    inside = [((np.asarray(polygon).reshape(-1, 2) - [x0, y0]) * scale).reshape(-1) for polygon in polygons]
    return torch.from_numpy(polygons_to_bitmask(inside, mask_size, mask_size))


class BitMasks:
    """Masks as bitmaps of the whole image.

    Attributes:
        tensor: bool (N, H, W).
        image_size: (H, W).
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        """
        Args:
            tensor: (N, H, W); what is not 0 is inside.
        """
        tensor = torch.as_tensor(tensor).to(torch.bool)
        assert tensor.dim() == 3, f"Bit masks are an (N, H, W) tensor, not {tuple(tensor.shape)}."
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """As :meth:`torch.Tensor.to`."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "BitMasks":
        """The selected masks, for an int one mask; a view where torch's indexing gives a view."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        selected = self.tensor[item]
        assert selected.dim() == 3, f"Indexing BitMasks with {item} does not select whole masks."
        return BitMasks(selected)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """One (H, W) tensor a mask."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: has a pixel inside."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Rasterise polygons into an image of this size."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        bitmaps = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(torch.from_numpy(np.stack(bitmaps)) if bitmaps else torch.empty(0, height, width))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut each mask out by its box and stretch it to a square (aligned ROIAlign, at least half covered).

        Args:
            boxes: (N, 4) in pixels.

        Returns:
            bool (N, mask_size, mask_size).
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks."
        own_index = torch.arange(len(boxes), device=self.device)[:, None].to(boxes.dtype)
        rois = torch.cat([own_index, boxes.to(self.device)], dim=1)
        squares = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)(self.tensor[:, None].float(), rois)
        return squares[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes: from the first pixel inside to one past the last; zeros for an empty mask."""
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        (x0, x1), (y0, y1) = _first_and_past_last(columns), _first_and_past_last(rows)
        return Boxes(torch.stack([x0, y0, x1, y1], dim=1).float())

    @staticmethod
    def cat(bitmasks_list: list["BitMasks"]) -> "BitMasks":
        """All masks of a list, which are of one image size."""
        assert isinstance(bitmasks_list, (list, tuple)) and len(bitmasks_list) > 0, "BitMasks.cat needs a list."
        assert all(isinstance(masks, BitMasks) for masks in bitmasks_list), "BitMasks.cat takes a list of BitMasks."
        return type(bitmasks_list[0])(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


def _first_and_past_last(hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of (N, L) bool the first True and one past the last; 0 and 0 if there is none."""
    length = hits.shape[1]
    position = torch.arange(length, device=hits.device)
    first = torch.where(hits, position, length).amin(dim=1) if length else position.new_zeros(len(hits))
    past_last = torch.where(hits, position + 1, 0).amax(dim=1) if length else first
    return torch.where(past_last > 0, first, 0), past_last


class PolygonMasks:
    """Masks as polygons; they live on the CPU.

    Attributes:
        polygons: for each instance a list of float64 vectors x0 y0 x1 y1 ... in pixels.
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray]]):
        """
        Raises:
            ValueError: not lists in a list, an odd number of values or fewer than three corners.
        """
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks takes a list with a list of polygons an instance, not {type(polygons)}.")
        self.polygons = [_checked_polygons(index, instance) for index, instance in enumerate(polygons)]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """These masks: polygons do not move."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes around all corners of each instance."""
        boxes = torch.zeros(len(self), 4)
        for row, instance in zip(boxes, self.polygons):
            row[:2] = float("inf")  # an instance without polygons keeps an empty box
            for polygon in instance:
                corners = torch.from_numpy(polygon).reshape(-1, 2).float()
                row[:2] = torch.minimum(row[:2], corners.amin(dim=0))
                row[2:] = torch.maximum(row[2:], corners.amax(dim=0))
        return Boxes(boxes)

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> "PolygonMasks":
        """The selected instances; a tensor or array selects by bool or by integer."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, (torch.Tensor, np.ndarray)):
            index = torch.as_tensor(item)
            assert index.dim() == 1, f"PolygonMasks are indexed by vectors, not by {index.dim()} dimensions."
            if index.dtype == torch.bool:
                index = index.nonzero().squeeze(1)
            elif index.is_floating_point():
                raise ValueError(f"PolygonMasks cannot be indexed by {index.dtype}; use bool or int64.")
            item = index.tolist()
        return PolygonMasks([self.polygons[index] for index in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """One list of polygons an instance."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut each mask out by its box and stretch it to a square.

        Args:
            boxes: (N, 4) in pixels.

        Returns:
            bool (N, mask_size, mask_size) on the device of ``boxes``.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks."
        squares = [
            rasterize_polygons_within_box(polygons, box, mask_size)
            for polygons, box in zip(self.polygons, boxes.cpu().numpy())
        ]
        if not squares:
            return torch.empty(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        return torch.stack(squares).to(boxes.device)

    def area(self) -> torch.Tensor:
        """(N,) areas; parts that overlap count twice."""
        return torch.tensor(
            [sum(polygon_area(polygon[0::2], polygon[1::2]) for polygon in polygons) for polygons in self.polygons]
        )

    @staticmethod
    def cat(polymasks_list: list["PolygonMasks"]) -> "PolygonMasks":
        """All masks of a list."""
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0, "PolygonMasks.cat needs a list."
        assert all(isinstance(masks, PolygonMasks) for masks in polymasks_list), (
            "PolygonMasks.cat takes a list of PolygonMasks."
        )
        return type(polymasks_list[0])(list(itertools.chain(*(masks.polygons for masks in polymasks_list))))


def _checked_polygons(index: int, instance: list) -> list[np.ndarray]:
    if not isinstance(instance, list):
        raise ValueError(f"Instance {index} is {type(instance)}; it must be a list of polygons.")
    polygons = [
        np.asarray(polygon.cpu() if isinstance(polygon, torch.Tensor) else polygon, dtype=np.float64)
        for polygon in instance
    ]
    for polygon in polygons:
        if len(polygon) % 2 != 0 or len(polygon) < 6:
            raise ValueError(
                f"Instance {index} has a polygon of {len(polygon)} values; x, y of three or more corners are needed."
            )
    return polygons


class ROIMasks:
    """Soft masks inside the boxes of their instances, as mask heads predict them.

    Attributes:
        tensor: (N, M, M) probabilities.
    """

    def __init__(self, tensor: torch.Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROI masks are an (N, M, M) tensor, not {tuple(tensor.shape)}.")
        self.tensor = tensor

    def to(self, device: torch.device) -> "ROIMasks":
        """The same masks on another device."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item) -> "ROIMasks":
        selected = self.tensor[item]
        if selected.dim() != 3:
            raise ValueError(f"Indexing ROIMasks with {item} does not select whole masks.")
        return ROIMasks(selected)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def to_bitmasks(self, boxes: Boxes | torch.Tensor, height, width, threshold=0.5) -> BitMasks:
        """Paste the masks over their boxes into an image; see :func:`detectron2.layers.paste_masks_in_image`."""
        from detectron2.layers.mask_ops import paste_masks_in_image

        paste = retry_if_cuda_oom(paste_masks_in_image)
        return BitMasks(paste(self.tensor, boxes, (height, width), threshold=threshold))
