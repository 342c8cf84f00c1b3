"""The text transformer that turns words into the vectors with which SEEM classifies (CLIP's, arXiv:2103.00020)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear

LAYER_NORM_EPS = 1e-12
NORM_EPS = 1e-7
ROWS_AT_ONCE = 64  # texts encoded together where nothing is trained


class TextEncoder(nn.Module):
    """Pre-norm blocks with a causal mask; a text's feature stands at its end token, the largest of all tokens."""

    def __init__(
        self, *, vocabulary_size: int, context_length: int, width: int, num_heads: int, num_layers: int, output_dim: int
    ):
        """
        Args:
            context_length: most tokens of a text, start and end among them.
            output_dim: width of the embeddings.
        """
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.resblocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.ln_final = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.projection = nn.Parameter(torch.empty(width, output_dim))
        for weight in (self.token_embedding.weight, self.positional_embedding, self.projection):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.resblocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) int64 -> features of all tokens (B, L, width)."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.resblocks:
            x = block(x)
        return self.ln_final(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L), padded behind their ends -> embeddings (B, output_dim), not normalised.

        No token sees a later one, so that what stands behind all ends is left out.
        """
        ends = tokens.argmax(-1)
        x = self(tokens[:, : int(ends.max()) + 1])
        return x[torch.arange(len(x), device=x.device), ends] @ self.projection

    def embed_many(self, tokens: Tensor) -> Tensor:
        """As `embed`, for any number of texts: in pieces of about equal length."""
        order = tokens.argmax(-1).argsort(stable=True)
        pieces = [self.embed(tokens[rows]) for rows in order.split(ROWS_AT_ONCE)]
        result = torch.cat(pieces)
        return torch.empty_like(result).index_copy_(0, order, result)


def normalised(embeddings: Tensor) -> Tensor:
    """Embeddings (..., D) at length 1, up to the original's epsilon."""
    return embeddings / (embeddings.norm(dim=-1, keepdim=True) + NORM_EPS)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = _CausalAttention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _CausalAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))  # CLIP's approximation of GELU
