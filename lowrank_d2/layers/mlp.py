"""Small networks of linear layers."""
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, *, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        sizes = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The feed-forward part of a post-norm transformer layer: norm(x + linear2(relu(linear1(x))))."""

    def __init__(self, *, embed_dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = Linear(embed_dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> the same shape."""
        return self.norm(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))))
