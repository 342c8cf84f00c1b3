"""SEEM's decoder: learned queries read the image where they saw their mask before, and are classified by words."""
import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.attention import AttentionBlock, SelfAttention
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import MLP, FeedForward
from lowrank_d2.layers.position_encoding import encode_cells
from lowrank_d2.modeling.predictions import Prediction, Predictions
from seem.pixel_decoder import NUM_LEVELS, PixelFeatures

NORM_EPS = 1e-7  # beside the length of what is classified, as in the original


class SEEMDecoder(nn.Module):
    """Predicts from the learned queries and after every layer."""

    def __init__(
        self,
        *,
        embed_dim: int,
        mask_dim: int,
        text_dim: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        num_queries: int,
    ):
        """
        Args:
            embed_dim: width of queries and memory.
            text_dim: width of the text embeddings that the queries are compared with.
        """
        super().__init__()
        self.query_feat = nn.Embedding(num_queries, embed_dim)
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, embed_dim)
        self.layers = nn.ModuleList(
            DecoderLayer(embed_dim=embed_dim, num_heads=num_heads, feedforward_dim=feedforward_dim)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.class_embed = nn.Parameter(torch.empty(embed_dim, text_dim))
        nn.init.trunc_normal_(self.class_embed, std=0.02)
        self.mask_embed = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=mask_dim, num_layers=3)

    def forward(self, features: PixelFeatures, text: Tensor, scale: Tensor) -> Predictions:
        """
        Args:
            features: of N images.
            text: (K + 1, text_dim), embeddings of the words of the classes and, last, of "background"; used as they are.
            scale: of the cosines.
        """
        batch = len(features.mask_features)
        memories = [self._memory(level, x) for level, x in enumerate(features.memory)]
        # Resizing and the product with the mask embeddings are both linear: features are resized instead of masks.
        small = [_resized(features.mask_features, x.shape[-2:]) for x in features.memory]
        x = self.query_feat.weight.expand(batch, -1, -1)
        pos = self.query_embed.weight.expand(batch, -1, -1)
        predictions = [self.predict(x, text, scale)]
        for i, layer in enumerate(self.layers):
            level = i % NUM_LEVELS
            blocked = blocked_cells(predictions[-1].mask_embed, small[level])
            x = layer(x, pos, *memories[level], blocked)
            predictions.append(self.predict(x, text, scale))
        *aux, last = predictions
        return Predictions(features.mask_features, last, tuple(aux))

    def predict(self, x: Tensor, text: Tensor, scale: Tensor) -> Prediction:
        """Queries (N, Q, embed_dim) -> their K + 1 class logits and mask embeddings."""
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            seen = x.float() @ self.class_embed.float()
            seen = seen / (seen.norm(dim=-1, keepdim=True) + NORM_EPS)
            logits = scale.float().exp() * F.linear(seen, text.float())
        return Prediction(logits=logits, mask_embed=self.mask_embed(x))

    def _memory(self, level: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """One level (N, embed_dim, h, w) as tokens (N, h * w, embed_dim), and their position encoding (1, h * w, .)."""
        pos = encode_cells(x.shape[-2:], x.shape[1], like=x)
        return x.flatten(2).transpose(1, 2) + self.level_embed.weight[level], pos


class DecoderLayer(nn.Module):
    """Queries read the memory, see each other, then pass through the feed-forward part; all post-norm."""

    def __init__(self, *, embed_dim: int, num_heads: int, feedforward_dim: int):
        super().__init__()
        self.cross_attn = CrossAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.self_attn = SelfAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=feedforward_dim)

    def forward(self, x: Tensor, pos: Tensor, memory: Tensor, memory_pos: Tensor, blocked: Tensor) -> Tensor:
        """As `CrossAttention.forward` -> (N, Q, embed_dim)."""
        x = self.cross_attn(x, pos, memory, memory_pos, blocked)
        return self.ffn(self.self_attn(x, pos))


class CrossAttention(AttentionBlock):
    """Multi-head attention of queries to a memory; positions act on queries and keys alone."""

    def __init__(self, *, embed_dim: int, num_heads: int):
        super().__init__(embed_dim=embed_dim)
        self.num_heads = num_heads
        self.q_proj = Linear(embed_dim, embed_dim)
        self.k_proj = Linear(embed_dim, embed_dim)
        self.v_proj = Linear(embed_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)
        bound = math.sqrt(6 / (4 * embed_dim))  # Xavier's of q, k and v as one matrix
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tensor, pos: Tensor, memory: Tensor, memory_pos: Tensor, blocked: Optional[Tensor] = None
    ) -> Tensor:
        """
        Args:
            x, pos: (N, Q, embed_dim).
            memory: (N, S, embed_dim); memory_pos: (1, S, embed_dim).
            blocked: (N, Q, S) bool, True where a query must not look.

        Returns:
            (N, Q, embed_dim)
        """
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.q_proj(x + pos), self.k_proj(memory + memory_pos), self.v_proj(memory))
        )
        allowed = None if blocked is None else ~blocked[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.join(x, self.out_proj(attended.transpose(1, 2).flatten(2)))


@torch.no_grad()
def blocked_cells(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Where queries must not look: the cells outside their mask. A query without any cell may look everywhere.

    Args:
        mask_embed: (N, Q, M); mask_features: (N, M, h, w).

    Returns:
        (N, Q, h * w) bool.
    """
    blocked = (mask_embed @ mask_features.flatten(2)).sigmoid() < 0.5
    return blocked & ~blocked.all(-1, keepdim=True)


@torch.no_grad()
def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
