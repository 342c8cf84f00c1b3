"""Small networks of linear layers."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.linear import Linear

# Without a backward pass the hidden layer is never whole: pieces of it stay in the processor's cache, and are small
# enough for the C library to keep their memory. 2048 units of float32 take 16 MiB.
TOKENS_AT_ONCE = 2048


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
        if x.device.type != "cpu" or self._is_recorded(x):
            return self.norm(x + self._change(x))
        tokens = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(tokens)
        for piece, result in zip(tokens.split(TOKENS_AT_ONCE), out.split(TOKENS_AT_ONCE)):
            torch.add(piece, self._change(piece), out=result)
        return self.norm(out).view(x.shape)

    def _change(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True))))

    def _is_recorded(self, x: Tensor) -> bool:
        """For a backward pass, for export or compilation."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
