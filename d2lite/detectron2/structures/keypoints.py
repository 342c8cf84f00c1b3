"""Keypoints of instances, and the heatmaps from which they are predicted."""
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


class Keypoints:
    """The keypoints of all instances of one image.

    Attributes:
        tensor: float32 (N, K, 3): x, y in pixels, and visibility 0 (not labelled), 1 (hidden) or 2 (visible).
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]):
        tensor = torch.as_tensor(keypoints, dtype=torch.float32)
        assert tensor.dim() == 3 and tensor.shape[2] == 3, (
            f"Keypoints are an (N, K, 3) tensor, not {tuple(tensor.shape)}."
        )
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> "Keypoints":
        """As :meth:`torch.Tensor.to`."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "Keypoints":
        """The selected instances, for an int one instance."""
        return Keypoints(self.tensor[[item]] if isinstance(item, int) else self.tensor[item])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: list["Keypoints"]) -> "Keypoints":
        """All instances of a list, which have the same number of keypoints."""
        assert isinstance(keypoints_list, (list, tuple)) and len(keypoints_list) > 0, "Keypoints.cat needs a list."
        assert all(isinstance(keypoints, Keypoints) for keypoints in keypoints_list), (
            "Keypoints.cat takes a list of Keypoints."
        )
        return type(keypoints_list[0])(torch.cat([keypoints.tensor for keypoints in keypoints_list], dim=0))

    def to_heatmap(self, boxes: torch.Tensor, heatmap_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cell of a heatmap over its box in which each keypoint lies: the target of a classification.

        Args:
            boxes: (N, 4), one an instance.

        Returns:
            int64 (N, K) cell, row by row; int64 (N, K) 1 where the keypoint is labelled and in the box, else 0.
        """
        return _keypoints_to_heatmap(self.tensor, boxes, heatmap_size)


def _keypoints_to_heatmap(
    keypoints: torch.Tensor, rois: torch.Tensor, heatmap_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if rois.numel() == 0:
        return rois.new_empty(0, dtype=torch.int64), rois.new_empty(0, dtype=torch.int64)
    points = keypoints[..., :2]
    low, high = rois[:, None, :2], rois[:, None, 2:]
    cells = ((points - low) * (heatmap_size / (high - low))).floor().long()
    cells = torch.where(points == high, heatmap_size - 1, cells)  # the far side belongs to the last cell
    in_box = ((cells >= 0) & (cells < heatmap_size)).all(dim=-1)
    valid = (in_box & (keypoints[..., 2] > 0)).long()
    return (cells[..., 1] * heatmap_size + cells[..., 0]) * valid, valid


@torch.no_grad()
def heatmaps_to_keypoints(maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """Read keypoints out of predicted heatmaps.

    Args:
        maps: (R, K, S, S) logits.
        rois: (R, 4) boxes that the maps cover.

    Returns:
        (R, K, 4): x, y, logit, and probability (a softmax over the map's own cells, read at full resolution).
    """
    keypoints = maps.new_zeros(*maps.shape[:2], 4)
    sizes = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    for index, (roi, size) in enumerate(zip(rois, sizes)):
        width, height = size.ceil().int().tolist()
        full = F.interpolate(maps[[index]], size=(height, width), mode="bicubic", align_corners=False)[0].flatten(1)
        peak, position = full.max(dim=1)
        total = (maps[index].flatten(1) - peak[:, None]).exp().sum(dim=1)
        cells = torch.stack([position % width, position // width], dim=1)
        cell_size = size / size.ceil()
        keypoints[index, :, :2] = (cells + 0.5) * cell_size + roi[:2]
        keypoints[index, :, 2] = peak
        keypoints[index, :, 3] = 1 / total
    return keypoints
