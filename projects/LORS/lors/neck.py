"""From the backbone's maps to those that queries sample: one convolution a level, one norm for all."""
from typing import Sequence

from torch import Tensor, nn


class Neck(nn.Module):
    """1 x 1 convolutions to one width, each followed by the same GroupNorm of 32 groups."""

    def __init__(self, *, in_channels: Sequence[int], embed_dim: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, embed_dim, kernel_size=1) for channels in in_channels)
        self.norm = nn.GroupNorm(32, embed_dim)
        for conv in self.lateral:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C_i, H_i, W_i) -> maps (N, embed_dim, H_i, W_i)."""
        return [self.norm(conv(x)) for conv, x in zip(self.lateral, maps)]
