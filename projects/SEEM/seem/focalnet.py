"""FocalNet (https://arxiv.org/abs/2203.11926): a backbone whose blocks weigh ever wider surroundings instead of attending.

Parameter names are those of the published weights. Tensors inside the blocks have their channels last, (N, H, W, C).
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import TOKENS_AT_ONCE
from lowrank_d2.modeling.backbone.swin import DropPath

FEATURES = ("res2", "res3", "res4", "res5")
LAYER_SCALE = 1e-4  # at the start of training
LARGE_MAP = 2**20  # elements of an image, beside which the weights of a stage are small


class FocalNet(Backbone):
    """Maps at strides 4, 8, 16 and 32, each with a layer norm of its own."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        focal_levels: Sequence[int],
        focal_windows: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        conv_embed: bool = True,
        depthwise: bool = False,
        patch_norm: bool = True,
        post_norm: bool = True,
        layer_scale: bool = True,
        scale_modulator: bool = True,
    ):
        """
        Args:
            embed_dim: channels at stride 4, doubled by every stage.
            depths: blocks of each of the four stages.
            focal_levels: per stage, how many surroundings a block looks at besides the whole image.
            focal_windows: per stage, the side of the narrowest surrounding; each next one is wider by 2.
            drop_path_rate: of the last block; it grows from 0 linearly.
            conv_embed: overlapping convolutions for the patches and between the stages.
            depthwise: the blocks of the published Tiny: a 3 x 3 convolution of every channel by itself comes before both
                parts, and `post_norm` norms the whole stream.
            patch_norm: a layer norm after the first convolution, the stem.
            post_norm: the blocks' norms stand behind what they norm, not before.
            layer_scale: learned factors of the blocks' changes.
            scale_modulator: divide the sum of the surroundings by their number.
        """
        super().__init__()
        channels = [embed_dim * 2**stage for stage in range(len(FEATURES))]
        # The published stem pads by 2, that of the depth-wise variant by 3.
        stem = {"kernel_size": 7, "stride": 4, "padding": 3 if depthwise else 2}
        self.patch_embed = _PatchEmbed(
            3, embed_dim, norm=patch_norm, **(stem if conv_embed else {"kernel_size": 4, "stride": 4})
        )
        rates = [drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for stage, width in enumerate(channels):
            blocks = [
                (_DepthwiseBlock if depthwise else _Block)(
                    width,
                    levels=focal_levels[stage],
                    window=focal_windows[stage],
                    mlp_ratio=mlp_ratio,
                    drop_path=rates[sum(depths[:stage]) + i],
                    post_norm=post_norm,
                    layer_scale=layer_scale,
                    scale_modulator=scale_modulator,
                )
                for i in range(depths[stage])
            ]
            downsample = None
            if stage + 1 < len(channels):
                shape = {"kernel_size": 3, "stride": 2, "padding": 1} if conv_embed else {"kernel_size": 2, "stride": 2}
                downsample = _PatchEmbed(width, channels[stage + 1], norm=True, **shape)
            self.layers.append(_Stage(blocks, downsample))
            self.add_module(f"norm{stage}", nn.LayerNorm(width))
        self._out_features = list(FEATURES)
        self._out_feature_channels = dict(zip(FEATURES, channels))
        self._out_feature_strides = {name: 4 * 2**stage for stage, name in enumerate(FEATURES)}
        self.apply(_initialise)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> {"res2": (N, C, H / 4, W / 4), ...}."""
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        features = {} if _is_recorded(self, x) else self._places(x)
        for stage, (name, layer) in enumerate(zip(FEATURES, self.layers)):
            x = layer.change(x)
            feature = getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2)
            features[name] = features[name].copy_(feature) if name in features else feature
            if layer.downsample is not None:
                x = layer.downsample(x)
        return features

    def _places(self, x: Tensor) -> dict[str, Tensor]:
        """Memory for the maps, taken before all that comes and goes, which then leaves one large hole, not a hole for each.

        Args:
            x: (N, H, W, C) of the first stage, of even sides on the way to the last and in the maps' precision; else none.
        """
        batch, height, width = x.shape[:3]
        coarsest = 2 ** (len(FEATURES) - 1)
        if height % coarsest or width % coarsest or torch.is_autocast_enabled(x.device.type):
            return {}
        places = {}
        for stage, name in enumerate(FEATURES):
            shape = batch, height >> stage, width >> stage, self._out_feature_channels[name]
            places[name] = x.new_empty(shape).permute(0, 3, 1, 2)
        return places

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


class _Stage(nn.Module):
    """Blocks of one stride, and the way to the next."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def change(self, x: Tensor) -> Tensor:
        """The blocks, (N, H, W, C) -> the same shape. With no backward pass to come, large maps have them one by one."""
        if x[:1].numel() < LARGE_MAP or _is_recorded(self.blocks, x):
            return self._blocks(x)
        return torch.cat([self._blocks(image) for image in x.split(1)])

    def _blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _PatchEmbed(nn.Module):
    """A strided convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool, **conv: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, **conv)
        self.norm = nn.LayerNorm(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H / stride, W / stride, out_channels)."""
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class _Block(nn.Module):
    """Focal modulation, then a small network for every pixel; both change a residual stream."""

    def __init__(
        self,
        width: int,
        *,
        levels: int,
        window: int,
        mlp_ratio: float,
        drop_path: float,
        post_norm: bool,
        layer_scale: bool,
        scale_modulator: bool,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(width)
        self.modulation = _FocalModulation(width, levels=levels, window=window, scaled=scale_modulator)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _PixelNetwork(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1, self.gamma_2 = (
            nn.Parameter(torch.full((width,), LAYER_SCALE)) if layer_scale else None for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        x = self._changed(x, self.modulation, self.norm1, self.gamma_1)
        return self._changed(x, self.mlp, self.norm2, self.gamma_2)

    def _changed(self, x: Tensor, part: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        change = norm(part(x)) if self.post_norm else part(norm(x))
        return x + self.drop_path(change if gamma is None else change * gamma)


class _DepthwiseBlock(_Block):
    """A block that looks at the neighbours before each part, and norms the stream behind it."""

    def __init__(self, width: int, **options: Any):
        super().__init__(width, **options)
        self.dw1, self.dw2 = (nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self._changed(_with_neighbours(x, self.dw1), self.modulation, self.norm1, self.gamma_1)
        return self._changed(_with_neighbours(x, self.dw2), self.mlp, self.norm2, self.gamma_2)

    def _changed(self, x: Tensor, part: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        if not self.post_norm:
            return super()._changed(x, part, norm, gamma)
        change = part(x)
        return norm(x + self.drop_path(change if gamma is None else change * gamma))


def _with_neighbours(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    return x + convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _FocalModulation(nn.Module):
    """Multiplies each pixel's query by a gated sum of its surroundings (equations 3 to 6 of the paper)."""

    def __init__(self, width: int, *, levels: int, window: int, scaled: bool):
        super().__init__()
        self.levels, self.scaled = levels, scaled
        self.f = Linear(width, 2 * width + levels + 1)
        self.h = nn.Conv2d(width, width, kernel_size=1)
        self.proj = Linear(width, width)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=side, padding=side // 2, groups=width, bias=False), nn.GELU()
            )
            for side in (window + 2 * level for level in range(levels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        width = x.shape[-1]
        query, context, gates = self.f(x).split((width, width, self.levels + 1), dim=-1)
        context, gates = context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2)
        total = torch.zeros_like(context)
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            total.addcmul_(context, gates[:, level : level + 1])
        total.addcmul_(F.gelu(context.mean((2, 3), keepdim=True)), gates[:, self.levels :])
        if self.scaled:
            total /= self.levels + 1
        return self.proj(query * self.h(total).permute(0, 2, 3, 1))


class _PixelNetwork(nn.Module):
    """Two linear layers. With no backward pass to come, on the CPU, the hidden units are never whole."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        if _is_recorded(self, x):
            return self._whole(x)
        return torch.cat([self._whole(piece) for piece in x.flatten(0, 2).split(TOKENS_AT_ONCE)]).view(x.shape)

    def _whole(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def _is_recorded(module: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass, export or compilation will look at what is in between; and always on a GPU, which pieces
    would slow down."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
