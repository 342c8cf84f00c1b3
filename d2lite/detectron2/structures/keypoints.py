"""Keypoints of instances; the heatmaps from which R-CNN predicts them need a full Detectron2."""
from typing import Any

import numpy as np
import torch

from detectron2._lite import refused

heatmaps_to_keypoints = refused("heatmaps_to_keypoints", __name__)


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

    to_heatmap = refused("Keypoints.to_heatmap", __name__)
