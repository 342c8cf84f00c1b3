import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import BasicStem, BottleneckBlock, ResNet, make_stage
from detectron2.modeling.backbone.resnet import BasicBlock


def resnet(depth=50, freeze_at=2, **resnets):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return build_backbone(cfg)


ALL = ["stem", "res2", "res3", "res4", "res5"]


def test_resnet50_counts():
    model = resnet(OUT_FEATURES=ALL)
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_454_912
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 23_232_512


@pytest.mark.parametrize(
    "depth, blocks, channels",
    [
        (18, (2, 2, 2, 2), (64, 128, 256, 512)),
        (34, (3, 4, 6, 3), (64, 128, 256, 512)),
        (50, (3, 4, 6, 3), (256, 512, 1024, 2048)),
        (101, (3, 4, 23, 3), (256, 512, 1024, 2048)),
    ],
)
def test_stages(depth, blocks, channels):
    with torch.device("meta"):
        model = resnet(depth, OUT_FEATURES=ALL)
    assert tuple(len(getattr(model, name)) for name in ALL[1:]) == blocks
    shapes = model.output_shape()
    assert tuple(shapes[name].channels for name in ALL) == (64, *channels)
    assert tuple(shapes[name].stride for name in ALL) == (4, 4, 8, 16, 32)
    assert isinstance(model.res2[0], BasicBlock if depth < 50 else BottleneckBlock)


def test_features_have_the_promised_shapes():
    model = resnet(18, OUT_FEATURES=["res3", "stem", "res5"])
    features = model(torch.zeros(2, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "stem": (2, 64, 16, 24),
        "res3": (2, 128, 8, 12),
        "res5": (2, 512, 2, 3),
    }
    assert list(model.output_shape()) == ["res3", "stem", "res5"]
    assert model.size_divisibility == 0 and model.padding_constraints == {}
    with pytest.raises(AssertionError):
        model(torch.zeros(3, 64, 96))


def test_unneeded_stages_are_not_built():
    model = resnet(18)
    assert [name for name, _ in model.named_children()] == ["stem", "res2", "res3", "res4"]


def test_names_of_the_weights():
    names = list(resnet(OUT_FEATURES=["res2"]).state_dict())
    norms = ["weight", "bias", "running_mean", "running_var"]
    assert names[:5] == ["stem.conv1.weight"] + [f"stem.conv1.norm.{name}" for name in norms]
    first = [name for name in names if name.startswith("res2.0.") and "norm" not in name]
    assert first == [f"res2.0.{name}.weight" for name in ("shortcut", "conv1", "conv2", "conv3")]
    assert "res2.1.shortcut.weight" not in names


@pytest.mark.parametrize("stride_in_1x1, strides", [(True, (2, 1)), (False, (1, 2))])
def test_where_the_stride_is(stride_in_1x1, strides):
    block = resnet(STRIDE_IN_1X1=stride_in_1x1, OUT_FEATURES=["res3"]).res3[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    assert block.shortcut.stride == (2, 2)


def test_dilated_res5():
    model = resnet(RES5_DILATION=2, OUT_FEATURES=["res5"])
    assert model.output_shape()["res5"].stride == 16
    assert {block.conv2.dilation for block in model.res5} == {(2, 2)}
    assert tuple(model(torch.zeros(1, 3, 64, 64))["res5"].shape) == (1, 2048, 4, 4)


def test_groups():
    block = resnet(NUM_GROUPS=32, WIDTH_PER_GROUP=4, OUT_FEATURES=["res2"]).res2[0]
    assert block.conv2.groups == 32
    assert tuple(block.conv2.weight.shape) == (128, 4, 3, 3)


@pytest.mark.parametrize("freeze_at, frozen", [(0, []), (1, ["stem"]), (3, ["stem", "res2", "res3"])])
def test_freezing(freeze_at, frozen):
    model = resnet(18, freeze_at, NORM="BN", OUT_FEATURES=["res4"])
    for name, child in model.named_children():
        requires_grad = {parameter.requires_grad for parameter in child.parameters()}
        norms = {type(module) for module in child.modules() if "BatchNorm" in type(module).__name__}
        if name in frozen:
            assert requires_grad == {False} and norms == {FrozenBatchNorm2d}
        else:
            assert requires_grad == {True} and norms == {nn.BatchNorm2d}


@pytest.mark.parametrize(
    "depth, options",
    [
        (50, {"RES5_DILATION": 4}),
        (18, {"RES2_OUT_CHANNELS": 256}),
        (18, {"NUM_GROUPS": 2}),
        (18, {"RES5_DILATION": 2}),
        (50, {"OUT_FEATURES": ["res9"]}),
    ],
)
def test_configs_that_cannot_be_built(depth, options):
    with pytest.raises(AssertionError):
        resnet(depth, **options)


def test_stage_arguments_per_block():
    blocks = make_stage(
        BottleneckBlock, 3, in_channels=16, out_channels=64, bottleneck_channels=8, stride_per_block=[2, 1, 1]
    )
    assert [block.stride for block in blocks] == [2, 1, 1]
    assert [block.in_channels for block in blocks] == [16, 64, 64]
    for options in ({"stride_per_block": [2, 1]}, {"stride_per_block": [2, 1, 1], "stride": 2}):
        with pytest.raises(AssertionError):
            make_stage(BottleneckBlock, 3, in_channels=16, out_channels=64, bottleneck_channels=8, **options)


def test_classifier():
    model = ResNet(BasicStem(), ResNet.make_default_stages(18), num_classes=10)
    assert tuple(model(torch.zeros(2, 3, 64, 64))["linear"].shape) == (2, 10)
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_initialisation():
    torch.manual_seed(0)
    convolution = BottleneckBlock(64, 64, bottleneck_channels=64).conv2
    # MSRA: variance 2 / (output channels x kernel area)
    assert convolution.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert convolution.bias is None
