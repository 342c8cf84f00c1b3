import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone
from detectron2.modeling.backbone import Backbone


class Levels(Backbone):
    """Constant features: `value` at stride 4, 8, 16."""

    strides = {"a": 4, "b": 8, "c": 16}

    def forward(self, x):
        height, width = x.shape[-2:]
        return {name: torch.ones(1, 2, height // s, width // s) * s for name, s in self.strides.items()}

    def output_shape(self):
        return {name: ShapeSpec(channels=2, stride=stride) for name, stride in self.strides.items()}


def fill(fpn):
    """Makes every convolution average its inputs' channels."""
    for name, module in fpn.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.zero_()
            middle = module.kernel_size[0] // 2
            module.weight.data[:, :, middle, middle] = 1 / module.in_channels
    return fpn


@pytest.mark.parametrize(
    "fuse, expected", [("sum", {"p4": 16, "p3": 24, "p2": 28}), ("avg", {"p4": 16, "p3": 12, "p2": 8})]
)
def test_the_top_down_way(fuse, expected):
    fpn = fill(FPN(Levels(), ["a", "b", "c"], 3, fuse_type=fuse))
    outputs = fpn(torch.zeros(1, 3, 64, 32))
    assert list(outputs) == ["p2", "p3", "p4"]
    for name, value in expected.items():
        stride = 2 ** int(name[1])
        torch.testing.assert_close(outputs[name], torch.full((1, 3, 64 // stride, 32 // stride), float(value)))


def test_shapes_and_padding():
    fpn = FPN(Levels(), ["a", "b"], 3, square_pad=64)
    assert fpn.size_divisibility == 8
    assert fpn.padding_constraints == {"square_size": 64}
    assert fpn.output_shape() == {"p2": ShapeSpec(channels=3, stride=4), "p3": ShapeSpec(channels=3, stride=8)}


def test_norm_replaces_bias():
    with_norm = FPN(Levels(), ["a"], 32, norm="GN")
    assert with_norm.fpn_lateral2.bias is None and with_norm.fpn_output2.norm is not None
    assert FPN(Levels(), ["a"], 32).fpn_lateral2.bias is not None


@pytest.mark.parametrize("features, fuse", [(["a", "c"], "sum"), ([], "sum"), (["a"], "max")])
def test_impossible_arguments(features, fuse):
    with pytest.raises(AssertionError):
        FPN(Levels(), features, 3, fuse_type=fuse)


@pytest.mark.parametrize(
    "name, inputs, levels",
    [
        ("build_resnet_fpn_backbone", ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5", "p6"]),
        ("build_retinanet_resnet_fpn_backbone", ["res3", "res4", "res5"], ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_backbones_of_the_config(name, inputs, levels):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = inputs
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    backbone = build_backbone(cfg)
    assert backbone.size_divisibility == 32
    assert list(backbone.output_shape()) == levels
    features = backbone(torch.zeros(1, 3, 128, 128))
    for level, (feature_name, feature) in zip(levels, features.items()):
        side = 128 // 2 ** int(level[1])
        assert feature_name == level and tuple(feature.shape) == (1, 16, side, side)
