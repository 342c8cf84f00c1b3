"""Keypoints of instances; the heatmaps from which R-CNN predicts them need a full Detectron2."""
import numpy as np
import torch

from detectron2._lite import refused

from .rows import Rows

heatmaps_to_keypoints = refused("heatmaps_to_keypoints", __name__)


class Keypoints(Rows):
    """Keypoints of one image, float32 (N, K, 3): x, y in pixels, and visibility 0 (not labelled), 1 (hidden), 2."""

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]):
        tensor = torch.as_tensor(keypoints, dtype=torch.float32)
        assert tensor.dim() == 3 and tensor.shape[2] == 3, f"Keypoints are (N, K, 3), not {tuple(tensor.shape)}."
        self.tensor = tensor

    to_heatmap = refused("Keypoints.to_heatmap", __name__)
