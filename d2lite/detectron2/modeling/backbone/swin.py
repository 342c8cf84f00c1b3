"""Swin Transformer (https://arxiv.org/abs/2103.14030) for images of any size; names as in its published weights."""
import math

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpoint
from torch import nn

from detectron2.modeling.backbone.backbone import Backbone

# Added to the logits between places that are no neighbours in the image; the value that the weights were trained with.
_SEPARATED = -100.0


class DropPath(nn.Module):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): training drops a sample's residual with `drop_prob`."""

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * kept / keep

    def extra_repr(self):
        return f"drop_prob={self.drop_prob:.3f}"


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, in_features, hidden_features=None, out_features=None, act_layer=nn.GELU, drop=0.0):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2, self.drop = nn.Linear(hidden_features, out_features or in_features), nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def window_partition(x, window_size):
    """(B, H, W, C) with H and W multiples of the window size -> (B * windows, window_size, window_size, C)."""
    x = x.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))  # B, rows, w, columns, w, C
    return x.transpose(2, 3).flatten(0, 2)


def window_reverse(windows, window_size, H, W):
    """The inverse of window_partition: (B, H, W, C)."""
    x = windows.unflatten(0, (-1, H // window_size, W // window_size))  # B, rows, columns, w, w, C
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _relative_position_index(height, width):
    """(H * W, H * W) row numbers of the bias table, by the offset between two places of a window."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    row_offset = rows[:, None] - rows[None, :] + height - 1
    column_offset = columns[:, None] - columns[None, :] + width - 1
    return row_offset * (2 * width - 1) + column_offset


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows (height, width), with a learned bias for each relative position.

    `qk_scale` is the factor of the logits; None is 1 / sqrt(channels of a head).
    """

    def __init__(self, dim, window_size, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.dim, self.window_size, self.num_heads = dim, window_size, num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        height, width = window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), num_heads))
        self.register_buffer("relative_position_index", _relative_position_index(height, width))
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x, mask=None):
        """x (B * windows, N, C), mask (windows, N, N) added to the logits -> (B * windows, N, C)."""
        batch, length, channels = x.shape
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-2, -1)  # batch, heads, N, N
        logits = logits + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            logits = (logits.unflatten(0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
        attention = self.attn_drop(logits.softmax(dim=-1))
        x = (attention @ v).transpose(1, 2).reshape(batch, length, channels)
        return self.proj_drop(self.proj(x))


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, each with norm before and residual; the windows are shifted by `shift_size`."""

    def __init__(
        self, dim, num_heads, window_size=7, shift_size=0, mlp_ratio=4.0, qkv_bias=True, qk_scale=None, drop=0.0,
        attn_drop=0.0, drop_path=0.0, act_layer=nn.GELU, norm_layer=nn.LayerNorm,
    ):
        super().__init__()
        assert 0 <= shift_size < window_size, f"the shift {shift_size} must be smaller than the window {window_size}"
        self.dim, self.num_heads, self.window_size, self.shift_size = dim, num_heads, window_size, shift_size
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, (window_size, window_size), num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x, mask_matrix):
        """x (B, H, W, C) -> the same shape; mask_matrix is `shift_mask` of the layer, used if the block shifts."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask_matrix))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x, mask_matrix):
        _, height, width, _ = x.shape
        size, shift = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        padded_height, padded_width = x.shape[1:3]
        if shift > 0:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        windows = window_partition(x, size).flatten(1, 2)
        windows = self.attn(windows, mask_matrix if shift > 0 else None).unflatten(1, (size, size))
        x = window_reverse(windows, size, padded_height, padded_width)
        if shift > 0:
            x = torch.roll(x, (shift, shift), dims=(1, 2))
        return x[:, :height, :width]


def shift_mask(height, width, window_size, shift_size, device):
    """(windows, N, N): 0 between neighbours, -100 between places that only rolling brought into one window."""

    def bands(length):
        length += -length % window_size
        places = torch.arange(length, device=device)
        return (places >= length - window_size).long() + (places >= length - shift_size).long()

    regions = 3 * bands(height)[:, None] + bands(width)[None, :]
    windows = window_partition(regions[None, :, :, None], window_size).flatten(1)
    separated = windows[:, :, None] != windows[:, None, :]
    return separated.float() * _SEPARATED


class PatchMerging(nn.Module):
    """Halves the size and doubles the channels: each 2 x 2 patch becomes one place."""

    def __init__(self, dim, norm_layer=nn.LayerNorm):
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x):
        """x (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # the four places of a patch column by column, as the published weights expect them
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class BasicLayer(nn.Module):
    """One stage: blocks, every second with shifted windows, then an optional downsampling."""

    def __init__(
        self, dim, depth, num_heads, window_size=7, mlp_ratio=4.0, qkv_bias=True, qk_scale=None, drop=0.0,
        attn_drop=0.0, drop_path=0.0, norm_layer=nn.LayerNorm, downsample=None, use_checkpoint=False,
    ):
        super().__init__()
        self.window_size, self.shift_size = window_size, window_size // 2
        self.depth, self.use_checkpoint = depth, use_checkpoint
        options = (mlp_ratio, qkv_bias, qk_scale, drop, attn_drop)
        rates = drop_path if isinstance(drop_path, (list, tuple)) else [drop_path] * depth
        shifts = [self.shift_size if index % 2 else 0 for index in range(depth)]
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, num_heads, window_size, shift, *options, drop_path=rate, norm_layer=norm_layer)
            for shift, rate in zip(shifts, rates)
        )
        self.downsample = None if downsample is None else downsample(dim=dim, norm_layer=norm_layer)

    def forward(self, x):
        """x (B, H, W, C) -> (the stage's output of that shape, what the next stage takes)."""
        mask = shift_mask(x.shape[1], x.shape[2], self.window_size, self.shift_size, x.device).to(x.dtype)
        for block in self.blocks:
            if self.use_checkpoint:
                x = checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Cuts the image, padded at the right and bottom, into patches and projects each."""

    def __init__(self, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None):
        super().__init__()
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x):
        """x (B, in_chans, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        height, width = self.patch_size
        x = self.proj(F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class SwinTransformer(Backbone):
    """The backbone; feature p0 has stride 4 and `embed_dim` channels, each next one twice both.

    Args:
        pretrain_img_size: side of the square images that `absolute_pos_embed` (with `ape`) was trained on, pixels.
        depths, num_heads: blocks and heads of each stage.
        window_size: side of the windows, in places.
        mlp_ratio: hidden width of the MLPs over the channels.
        drop_path_rate: the last block's stochastic depth; it grows linearly from 0.
        out_indices: stages whose normed outputs are returned.
        frozen_stages: 0 freezes the patch embedding, 1 the absolute positions too, k >= 2 also k - 1 stages.
        use_checkpoint: recomputes blocks in the backward pass to save memory.
    """

    def __init__(
        self, pretrain_img_size=224, patch_size=4, in_chans=3, embed_dim=96, depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24), window_size=7, mlp_ratio=4.0, qkv_bias=True, qk_scale=None, drop_rate=0.0,
        attn_drop_rate=0.0, drop_path_rate=0.2, norm_layer=nn.LayerNorm, ape=False, patch_norm=True,
        out_indices=(0, 1, 2, 3), frozen_stages=-1, use_checkpoint=False,
    ):
        super().__init__()
        self.pretrain_img_size, self.num_layers, self.embed_dim = pretrain_img_size, len(depths), embed_dim
        self.ape, self.patch_norm = ape, patch_norm
        self.out_indices, self.frozen_stages = out_indices, frozen_stages

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, norm_layer if patch_norm else None)
        if ape:
            side = math.ceil(pretrain_img_size / self.patch_embed.patch_size[0])
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(p=drop_rate)

        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.num_features = [embed_dim * 2**stage for stage in range(self.num_layers)]
        options = dict(
            window_size=window_size, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_scale=qk_scale, drop=drop_rate,
            attn_drop=attn_drop_rate, norm_layer=norm_layer, use_checkpoint=use_checkpoint,
        )
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            drop_path = rates[sum(depths[:stage]) : sum(depths[: stage + 1])]
            downsample = PatchMerging if stage < self.num_layers - 1 else None
            shape = self.num_features[stage], depth, num_heads[stage]
            self.layers.append(BasicLayer(*shape, drop_path=drop_path, downsample=downsample, **options))
        for stage in out_indices:
            self.add_module(f"norm{stage}", norm_layer(self.num_features[stage]))

        self._out_features = [f"p{stage}" for stage in out_indices]
        self._out_feature_channels = {f"p{stage}": self.num_features[stage] for stage in out_indices}
        self._out_feature_strides = {f"p{stage}": patch_size * 2**stage for stage in out_indices}
        self.apply(self._init_weights)
        self._freeze_stages()

    @property
    def size_divisibility(self):
        return 32

    def forward(self, x):
        """x (N, in_chans, H, W), any size -> {"p<stage>": (N, channels, H / stride, W / stride), rounded up}."""
        x = self.patch_embed(x)
        if self.ape:
            x = x + F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        for stage, layer in enumerate(self.layers):
            features, x = layer(x)
            if stage in self.out_indices:
                outputs[f"p{stage}"] = getattr(self, f"norm{stage}")(features).permute(0, 3, 1, 2).contiguous()
        return outputs

    def _freeze_stages(self):
        frozen = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
        if self.frozen_stages >= 1 and self.ape:
            self.absolute_pos_embed.requires_grad = False
        if self.frozen_stages >= 2:
            frozen += [self.pos_drop, *self.layers[: self.frozen_stages - 1]]
        for module in frozen:
            module.eval().requires_grad_(False)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
