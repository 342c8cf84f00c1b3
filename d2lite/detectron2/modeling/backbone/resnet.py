"""ResNet and ResNeXt (https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1611.05431) as feature extractors."""
import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import nn

from detectron2._lite import refused_class
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase
DeformBottleneckBlock = refused_class("DeformBottleneckBlock", __name__, CNNBlockBase)

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(in_channels, out_channels, kernel_size, norm, stride=1, dilation=1, groups=1):
    """A convolution without bias that keeps the size at stride 1, with its norm and MSRA initialisation."""
    conv = Conv2d(
        in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=dilation * (kernel_size // 2),
        dilation=dilation, groups=groups, bias=False, norm=get_norm(norm, out_channels),
    )
    weight_init.c2_msra_fill(conv)
    return conv


class _ResidualBlock(CNNBlockBase):
    """relu(residual(x) + shortcut(x)); the shortcut is a 1x1 convolution where the number of channels changes."""

    def __init__(self, in_channels, out_channels, stride, norm):
        super().__init__(in_channels, out_channels, stride)
        changes = in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride) if changes else None

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.residual(x) + shortcut)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions, the first with the stride (ResNet-18 and 34)."""

    def __init__(self, in_channels, out_channels, *, stride=1, norm="BN"):
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def residual(self, x):
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions (ResNet-50 and deeper); more than one group in the 3x3 is ResNeXt.

    `stride_in_1x1`: the stride is at the first convolution (MSRA's weights) instead of the 3x3 (torchvision's).
    """

    def __init__(
        self, in_channels, out_channels, *, bottleneck_channels, stride=1, num_groups=1, norm="BN", stride_in_1x1=False,
        dilation=1,
    ):
        super().__init__(in_channels, out_channels, stride, norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, norm, stride=first)
        self.conv2 = _conv(width, width, 3, norm, stride=second, dilation=dilation, groups=num_groups)
        self.conv3 = _conv(width, out_channels, 1, norm)

    def residual(self, x):
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))


class BasicStem(CNNBlockBase):
    """7x7 convolution and max-pooling, each with stride 2."""

    def __init__(self, in_channels=3, out_channels=64, norm="BN"):
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x):
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of blocks named res2, res3, ...

    Args:
        num_classes: adds a classifier; its scores (N, num_classes) are the feature "linear".
        out_features: names among "stem", "res2", ..., "linear" to return; None is the last one. Stages after the
            last of them are not built.
        freeze_at: 1 freezes the stem, k the stages up to res_k too.
    """

    def __init__(self, stem, stages, num_classes=None, out_features=None, freeze_at=0):
        super().__init__()
        self.stem, self.num_classes = stem, num_classes
        stride, channels = stem.stride, stem.out_channels
        self._out_feature_strides, self._out_feature_channels = {"stem": stride}, {"stem": channels}

        names = [f"res{index}" for index in range(2, 2 + len(stages))]
        if out_features is not None and "linear" not in out_features:
            names = names[: max((i for i, name in enumerate(names, start=1) if name in out_features), default=0)]
        self.stage_names, self.stages = tuple(names), []
        for name, blocks in zip(names, stages):
            assert blocks, f"stage {name} has no blocks"
            assert all(isinstance(block, CNNBlockBase) for block in blocks), f"{name} holds what is no CNNBlockBase"
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels

        children = ["stem", *names]
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # "The 1000-way fully-connected layer is initialized by ... N(0, 0.01)" (https://arxiv.org/abs/1706.02677)
            nn.init.normal_(self.linear.weight, std=0.01)
            children.append("linear")
        self._out_features = [children[-1]] if out_features is None else out_features
        assert self._out_features, "a ResNet needs at least one output feature"
        for name in self._out_features:
            assert name in children, f"there is no output feature {name} among {', '.join(children)}"
        self.freeze(freeze_at)

    def forward(self, x):
        """x (N, C, H, W) -> {name: (N, C_name, H / stride_name, W / stride_name)}."""
        assert x.dim() == 4, f"ResNet takes images of shape (N, C, H, W), got {tuple(x.shape)}"
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages):
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None:
            x = self.linear(self.avgpool(x).flatten(1))
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def output_shape(self):
        """{name: ShapeSpec} of the feature maps; the classifier's scores are none."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        maps = [name for name in self._out_features if name in channels]
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in maps}

    def freeze(self, freeze_at=0):
        """Freezes the stem (1) and the stages up to res_k (k >= 2); their BatchNorm becomes FrozenBatchNorm."""
        if freeze_at >= 1:
            self.stem.freeze()
        for number, stage in enumerate(self.stages, start=2):
            if freeze_at >= number:
                for block in stage:
                    block.freeze()
        return self

    @staticmethod
    def make_stage(block_class, num_blocks, *, in_channels, out_channels, **kwargs):
        """A list of blocks, of which the first goes from `in_channels` to `out_channels`.

        `kwargs` go to every block; one named `<argument>_per_block` is a list with a value for each.
        """
        suffix = "_per_block"
        lists = {name.removesuffix(suffix): value for name, value in kwargs.items() if name.endswith(suffix)}
        for name, values in lists.items():
            assert len(values) == num_blocks, f"{name + suffix} needs {num_blocks} values, has {len(values)}"
            assert name not in kwargs, f"give {name + suffix} or {name}, not both"
        shared = {name: value for name, value in kwargs.items() if not name.endswith(suffix)}
        blocks = []
        for values in zip(*lists.values()) if lists else [()] * num_blocks:
            options = {**shared, **dict(zip(lists, values))}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **options))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(depth, block_class=None, **kwargs):
        """The four stages of the ResNet with `depth` 18, 34, 50, 101 or 152 layers; `kwargs` go to every block."""
        shallow = depth < 50
        if block_class is None:
            block_class = BasicBlock if shallow else BottleneckBlock
        widths = (64, 128, 256, 512) if shallow else (256, 512, 1024, 2048)
        stages = []
        for num_blocks, stride, inputs, width in zip(_BLOCKS_PER_STAGE[depth], (1, 2, 2, 2), (64, *widths), widths):
            if not shallow:
                kwargs["bottleneck_channels"] = width // 4
            kwargs.update(in_channels=inputs, out_channels=width, stride_per_block=[stride] + [1] * (num_blocks - 1))
            stages.append(ResNet.make_stage(block_class, num_blocks, **kwargs))
        return stages


make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape):
    """A ResNet from MODEL.RESNETS, frozen up to MODEL.BACKBONE.FREEZE_AT."""
    options = cfg.MODEL.RESNETS
    depth, norm = options.DEPTH, options.NORM
    assert options.RES5_DILATION in (1, 2), f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, not {options.RES5_DILATION}"
    if depth in (18, 34):
        _check_shallow(options)
    out_channels, in_channels = options.RES2_OUT_CHANNELS, options.STEM_OUT_CHANNELS
    width = options.NUM_GROUPS * options.WIDTH_PER_GROUP
    stem = BasicStem(in_channels=input_shape.channels, out_channels=options.STEM_OUT_CHANNELS, norm=norm)
    # Stages that no output needs are never built: a res5 alone costs more memory than the three before it.
    last = max([number - 1 for number in range(2, 6) if f"res{number}" in options.OUT_FEATURES], default=0)
    stages = []
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth][:last]):
        dilation = options.RES5_DILATION if index == 3 else 1
        stride = 1 if index == 0 or dilation == 2 else 2
        block_class = BasicBlock
        blocks = dict(norm=norm, in_channels=in_channels, out_channels=out_channels)
        if depth not in (18, 34):
            block_class = DeformBottleneckBlock if options.DEFORM_ON_PER_STAGE[index] else BottleneckBlock
            blocks.update(
                bottleneck_channels=width, stride_in_1x1=options.STRIDE_IN_1X1, dilation=dilation,
                num_groups=options.NUM_GROUPS,
            )
        strides = [stride] + [1] * (num_blocks - 1)
        stages.append(ResNet.make_stage(block_class, num_blocks, stride_per_block=strides, **blocks))
        in_channels, out_channels, width = out_channels, out_channels * 2, width * 2
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _check_shallow(options):
    """ResNet-18 and 34 have blocks without bottleneck, groups or dilation."""
    expected = {"RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 1, "RES5_DILATION": 1, "DEFORM_ON_PER_STAGE": [False] * 4}
    for key, value in expected.items():
        given = getattr(options, key)
        assert given == value, f"MODEL.RESNETS.{key} must be {value} for depth {options.DEPTH}, not {given}"
