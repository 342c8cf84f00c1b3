"""The interface of backbones."""
from abc import ABCMeta, abstractmethod
from typing import Dict

from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A module from images (N, C, H, W) to {name: feature map}.

    Subclasses fill `_out_features` (names), `_out_feature_channels` and `_out_feature_strides` ({name: number}), or
    override output_shape.
    """

    @abstractmethod
    def forward(self):
        """{name: feature map (N, C_name, H / stride_name, W / stride_name)}."""

    @property
    def size_divisibility(self) -> int:
        """Images must be padded to multiples of this; 0 when any size will do."""
        return 0

    @property
    def padding_constraints(self) -> Dict[str, int]:
        """Further wishes for ImageList.from_tensors: "square_size", "size_divisibility"."""
        return {}

    def output_shape(self):
        """{name: ShapeSpec(channels, stride)} of what forward returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}
