"""Masks in the forms in which they are drawn: bitmaps, outlines, the segments of a panoptic segmentation."""
import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch


class GenericMask:
    """A mask of an image, from an (H, W) array, a list of (2 n,) polygons, or COCO's RLE; it gives the first two."""

    def __init__(self, mask_or_polygons, height: int, width: int):
        self.height, self.width = height, width
        self._mask, self._polygons, self._has_holes = None, None, None
        if isinstance(mask_or_polygons, dict):
            rle = mask_or_polygons
            if isinstance(rle["counts"], list):
                rle = mask_util.frPyObjects(rle, height, width)
            mask_or_polygons = mask_util.decode(rle)
        if isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon).reshape(-1) for polygon in mask_or_polygons]
        elif isinstance(mask_or_polygons, np.ndarray):
            size = mask_or_polygons.shape
            assert size == (height, width), f"A mask of an image of {(height, width)} has the shape {size}."
            self._mask = mask_or_polygons.astype(np.uint8)
        else:
            raise ValueError(f"A mask is an array, polygons or an RLE, got {type(mask_or_polygons).__name__}.")

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self._polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Outlines, (2 n,) each; those of holes among them."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the mask has holes, which polygons cannot show. Given polygons have none."""
        if self._has_holes is None:
            self._has_holes = self.mask_to_polygons(self._mask)[1] if self._mask is not None else False
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of a bitmap with three points at least, and whether it has holes."""
        found = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        contours, hierarchy = found[-2:]
        if hierarchy is None:
            return [], False
        has_holes = bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())  # a contour with a parent is a hole's
        outlines = [contour.reshape(-1) for contour in contours]
        # cv2 gives indices of pixels; their centres lie at + 0.5.
        return [outline + 0.5 for outline in outlines if len(outline) >= 6], has_holes

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """(H, W) uint8 of the union of polygons."""
        if not polygons:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        rles = mask_util.frPyObjects([list(map(float, polygon)) for polygon in polygons], self.height, self.width)
        return mask_util.decode(mask_util.merge(rles))

    def area(self) -> int:
        return self.mask.sum()

    def bbox(self) -> np.ndarray:
        """(4,) x0, y0, x1, y1."""
        x, y, width, height = mask_util.toBbox(mask_util.encode(np.asfortranarray(self.mask)))
        return np.array([x, y, x + width, y + height])


class _PanopticPrediction:
    """A panoptic segmentation, (H, W) ids of segments, taken apart into masks.

    Without segments_info, ids are class * metadata.label_divisor + instance, and -1 is unlabelled.
    """

    def __init__(self, panoptic_seg: torch.Tensor, segments_info: list[dict] | None, metadata=None):
        self._seg = np.asarray(panoptic_seg)
        ids, areas = np.unique(self._seg, return_counts=True)
        self._by_area = ids[np.argsort(-areas, kind="stable")].tolist()
        if segments_info is None:
            assert metadata is not None, "Without segments_info, metadata with a label_divisor are needed."
            things = metadata.thing_dataset_id_to_contiguous_id.values()
            classes = {i: i // metadata.label_divisor for i in ids.tolist() if i >= 0}
            segments_info = [{"id": i, "category_id": c, "isthing": c in things} for i, c in classes.items()]
        self._info = {segment["id"]: segment for segment in segments_info}

    def non_empty_mask(self) -> np.ndarray:
        """(H, W) bool, False where no segment is."""
        return np.isin(self._seg, list(self._info))

    def _masks(self, things: bool):
        for segment_id in self._by_area:
            info = self._info.get(segment_id)
            if info is not None and bool(info["isthing"]) == things:
                yield self._seg == segment_id, info

    def semantic_masks(self):
        """((H, W) bool, info) of the stuff segments, large ones first."""
        return self._masks(things=False)

    def instance_masks(self):
        """((H, W) bool, info) of the thing segments, large ones first."""
        return self._masks(things=True)
