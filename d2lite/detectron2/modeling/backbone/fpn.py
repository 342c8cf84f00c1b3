"""Feature pyramid networks (https://arxiv.org/abs/1612.03144)."""
import math

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone


class FPN(Backbone):
    """Features of one width at all strides of `bottom_up`, named p<log2 of the stride>.

    Args:
        in_features: those of the Backbone `bottom_up` to use, fine to coarse; each stride twice the one before.
        norm: of all convolutions, as get_norm takes it; they have a bias if it is "".
        top_block: makes further, coarser levels; has `in_feature` and `num_levels`.
        fuse_type: "sum" or "avg" of the lateral and the upsampled feature.
        square_pad: asks for images padded to this square, pixels; 0 does not.
    """

    def __init__(self, bottom_up, in_features, out_channels, norm="", top_block=None, fuse_type="sum", square_pad=0):
        super().__init__()
        assert isinstance(bottom_up, Backbone), f"bottom_up must be a Backbone, not {type(bottom_up)}"
        assert in_features, "FPN needs at least one input feature"
        assert fuse_type in ("sum", "avg"), f"FUSE_TYPE must be 'sum' or 'avg', not {fuse_type!r}"
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        for finer, coarser in zip(strides, strides[1:]):
            assert coarser == 2 * finer, f"the strides of in_features must double, but are {strides}"

        self._levels = [int(math.log2(stride)) for stride in strides]
        for level, name in zip(self._levels, in_features):
            lateral = self._conv(shapes[name].channels, out_channels, 1, norm)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", self._conv(out_channels, out_channels, 3, norm))
        self.top_block, self.in_features, self.bottom_up = top_block, tuple(in_features), bottom_up

        extra = [] if top_block is None else range(self._levels[-1] + 1, self._levels[-1] + 1 + top_block.num_levels)
        levels = [*self._levels, *extra]
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility, self._square_pad, self._fuse_type = strides[-1], square_pad, fuse_type

    @staticmethod
    def _conv(in_channels, out_channels, size, norm):
        options = {"padding": size // 2, "bias": norm == "", "norm": get_norm(norm, out_channels)}
        conv = Conv2d(in_channels, out_channels, kernel_size=size, **options)
        weight_init.c2_xavier_fill(conv)
        return conv

    @property
    def size_divisibility(self):
        return self._size_divisibility

    @property
    def padding_constraints(self):
        return {"square_size": self._square_pad}

    def forward(self, x):
        """x (N, C, H, W) -> {"p<level>": (N, out_channels, H / 2^level, W / 2^level)}, fine to coarse."""
        bottom_up = self.bottom_up(x)
        outputs, merged = {}, None
        for level, name in zip(reversed(self._levels), reversed(self.in_features)):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    lateral = lateral / 2
            merged = lateral
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = self.top_block(bottom_up[name] if name in bottom_up else outputs[name])
            outputs.update(zip(self._out_features[len(self._levels) :], top))
        return {name: outputs[name] for name in self._out_features}


class LastLevelMaxPool(nn.Module):
    """p6 of Faster R-CNN: every second place of p5."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x):
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 of RetinaNet: two convolutions with stride 2 over `in_feature`."""

    num_levels = 2

    def __init__(self, in_channels, out_channels, in_feature="res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        weight_init.c2_xavier_fill(self.p6)
        weight_init.c2_xavier_fill(self.p7)

    def forward(self, c5):
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn(cfg, bottom_up, top_block):
    options = cfg.MODEL.FPN
    return FPN(
        bottom_up, options.IN_FEATURES, options.OUT_CHANNELS, norm=options.NORM, top_block=top_block,
        fuse_type=options.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec):
    """ResNet and FPN with p6 by pooling, from MODEL.RESNETS and MODEL.FPN."""
    return _fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec):
    """ResNet and FPN with p6 and p7 convolved from res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
