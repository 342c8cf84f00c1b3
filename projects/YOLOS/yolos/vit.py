"""The plain vision transformer of YOLOS (arXiv:2106.00666): patches and 100 detection tokens in one sequence.

Module and parameter names are those of the original's checkpoints.
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear
from yolos.positions import Grid, grid_of, resize_positions


class DetectionViT(nn.Module):
    """Images to detection tokens.

    Args:
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: heads of each attention.
        mlp_dim: hidden width of each feed-forward part.
        patch_size: side of a patch in pixels.
        num_det_tokens: objects that can be found at most.
        initial_grid: rows and columns of patches of the position embedding before the first block.
        mid_grid: the same of those that are added after every block but the last; None for none.
        norm_eps: of all layer norms.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        num_det_tokens: int,
        initial_grid: Grid,
        mid_grid: Optional[Grid],
        norm_eps: float,
    ):
        super().__init__()
        self.patch_size, self.num_det_tokens = patch_size, num_det_tokens
        self.initial_grid, self.mid_grid = initial_grid, mid_grid
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        self.cls_token = _table(1, 1, embed_dim)
        self.det_token = _table(1, num_det_tokens, embed_dim)
        self.pos_embed = _table(1, self._length(initial_grid), embed_dim)
        self.mid_pos_embed = None if mid_grid is None else _table(depth - 1, 1, self._length(mid_grid), embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_dim, norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> (N, num_det_tokens, embed_dim); rows and columns that fill no patch are cut."""
        grid = grid_of(*images.shape[-2:], self.patch_size)
        patches = self.patch_embed(images)
        ends = (token.expand(len(images), -1, -1) for token in (self.cls_token, self.det_token))
        x = torch.cat((next(ends), patches, next(ends)), dim=1)
        x = x + resize_positions(self.pos_embed, self.initial_grid, grid, self.num_det_tokens)
        between = self._positions_between(grid)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if between is not None and number < len(between):
                x = x + between[number]
        return self.norm(x[:, -self.num_det_tokens :])

    def _positions_between(self, grid: Grid) -> Optional[Tensor]:
        """(depth - 1, 1, tokens, embed_dim)."""
        if self.mid_pos_embed is None:
            return None
        return resize_positions(self.mid_pos_embed, self.mid_grid, grid, self.num_det_tokens)

    def _length(self, grid: Grid) -> int:
        # A product of floors: the original counts H * W // 256 tokens, at 800 x 1333 more than there are patches.
        return 1 + grid[0] * grid[1] + self.num_det_tokens


class PatchEmbed(nn.Module):
    """Patches, row by row, as tokens."""

    def __init__(self, embed_dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, embed_dim)"""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention and feed-forward.

    Attributes:
        embed_dim: width of the residual stream.
        adapter: None, or a module that takes the attention's output and the residual stream.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, norm_eps: float):
        super().__init__()
        self.embed_dim = embed_dim
        self.norm1 = nn.LayerNorm(embed_dim, norm_eps)
        self.attn = Attention(embed_dim, num_heads)
        self.register_module("adapter", None)
        self.norm2 = nn.LayerNorm(embed_dim, norm_eps)
        self.mlp = Mlp(embed_dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, embed_dim) -> the same shape."""
        attended = self.attn(self.norm1(x))
        if self.adapter is not None:
            attended = self.adapter(attended, x)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` stacks the rows of the query, key and value projections in this order."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = _linear(embed_dim, 3 * embed_dim)
        self.proj = _linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, embed_dim) -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, embed_dim: int, mlp_dim: int):
        super().__init__()
        self.fc1 = _linear(embed_dim, mlp_dim)
        self.fc2 = _linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _linear(in_features: int, out_features: int) -> Linear:
    layer = Linear(in_features, out_features)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
