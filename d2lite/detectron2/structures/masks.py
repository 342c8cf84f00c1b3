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
from .rows import Rows


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
    """(mask_size, mask_size) bool: what polygons cover of ``box``, x0 y0 x1 y1, stretched to a square."""
    x0, y0, x1, y1 = (float(value) for value in box)
    scale = np.array([mask_size / max(x1 - x0, 0.1), mask_size / max(y1 - y0, 0.1)])
    inside = [((np.asarray(polygon).reshape(-1, 2) - [x0, y0]) * scale).reshape(-1) for polygon in polygons]
    return torch.from_numpy(polygons_to_bitmask(inside, mask_size, mask_size))


class BitMasks(Rows):
    """Masks as bitmaps of the whole image: ``tensor`` is bool (N, H, W), made from what is not 0."""

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.bool)
        assert tensor.dim() == 3, f"Bit masks are an (N, H, W) tensor, not {tuple(tensor.shape)}."
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

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
        """(N, mask_size, mask_size) bool: masks cut out by (N, 4) boxes, pixels, and stretched by aligned ROIAlign."""
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


def _first_and_past_last(hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of (N, L) bool the first True and one past the last; 0 and 0 if there is none."""
    length = hits.shape[1]
    position = torch.arange(length, device=hits.device)
    first = torch.where(hits, position, length).amin(dim=1) if length else position.new_zeros(len(hits))
    past_last = torch.where(hits, position + 1, 0).amax(dim=1) if length else first
    return torch.where(past_last > 0, first, 0), past_last


class PolygonMasks:
    """Masks as polygons: for each instance a list of float64 x0 y0 x1 y1 ... (ValueError below 3 corners)."""

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray]]):
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks takes a list with a list of polygons an instance, not {type(polygons)}.")
        self.polygons = [_checked_polygons(index, instance) for index, instance in enumerate(polygons)]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """These masks: polygons do not move."""

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
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """(N, mask_size, mask_size) bool: each mask cut out by its box, (N, 4) in pixels, and stretched to a square."""
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks."
        pairs = zip(self.polygons, boxes.cpu().numpy())
        squares = [rasterize_polygons_within_box(polygons, box, mask_size) for polygons, box in pairs]
        empty = torch.empty(0, mask_size, mask_size, dtype=torch.bool)
        return (torch.stack(squares) if squares else empty).to(boxes.device)

    def area(self) -> torch.Tensor:
        """(N,) areas; parts that overlap count twice."""
        areas = [sum(polygon_area(polygon[0::2], polygon[1::2]) for polygon in polygons) for polygons in self.polygons]
        return torch.tensor(areas)

    @staticmethod
    def cat(polymasks_list: list["PolygonMasks"]) -> "PolygonMasks":
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0, "PolygonMasks.cat needs a list."
        assert all(isinstance(masks, PolygonMasks) for masks in polymasks_list), "A list of PolygonMasks is needed."
        return type(polymasks_list[0])(list(itertools.chain(*(masks.polygons for masks in polymasks_list))))


def _checked_polygons(index: int, instance: list) -> list[np.ndarray]:
    if not isinstance(instance, list):
        raise ValueError(f"Instance {index} is {type(instance)}; it must be a list of polygons.")
    on_cpu = (polygon.cpu() if isinstance(polygon, torch.Tensor) else polygon for polygon in instance)
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in on_cpu]
    for length in map(len, polygons):
        if length % 2 != 0 or length < 6:
            raise ValueError(f"Instance {index} has a polygon of {length} values; x, y of three corners are the least.")
    return polygons


class ROIMasks(Rows):
    """Soft masks (N, M, M) inside the boxes of their instances, as mask heads predict them."""

    def __init__(self, tensor: torch.Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROI masks are an (N, M, M) tensor, not {tuple(tensor.shape)}.")
        self.tensor = tensor

    def __getitem__(self, item) -> "ROIMasks":
        selected = self.tensor[item]
        if selected.dim() != 3:
            raise ValueError(f"Indexing ROIMasks with {item} does not select whole masks.")
        return ROIMasks(selected)

    def to_bitmasks(self, boxes: Boxes | torch.Tensor, height, width, threshold=0.5) -> BitMasks:
        """Paste the masks over their boxes into an image; see :func:`detectron2.layers.paste_masks_in_image`."""
        from detectron2.layers.mask_ops import paste_masks_in_image

        paste = retry_if_cuda_oom(paste_masks_in_image)
        return BitMasks(paste(self.tensor, boxes, (height, width), threshold=threshold))
