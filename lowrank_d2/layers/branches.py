"""Further outputs of a transformer layer's feed-forward part, supervised in training and absent afterwards.

LoRA-DETR ("Integrating Diverse Assignment Strategies into DETRs") gives every assignment rule a branch of its own. A
branch sees what the feed-forward part sees; its output goes to the prediction heads alone, never to the next layer.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_d2.layers.mlp import FeedForward

INITS = ("zero", "xavier")


class LowRankUpdate(nn.Module):
    """The update (x A) B of a linear layer, without any scale: A is (in, rank), B is (rank, out)."""

    def __init__(self, in_dim: int, out_dim: int, rank: int, init: str):
        """
        Args:
            init: "zero" starts A normal with variance 1 / rank and B at 0, so that a branch starts as a copy of the
                feed-forward part; "xavier" starts both uniform after Xavier, so that branches differ at once.
        """
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        self.B = nn.Parameter(torch.empty(rank, out_dim))
        if init == "xavier":
            nn.init.xavier_uniform_(self.A)
            nn.init.xavier_uniform_(self.B)
        else:
            nn.init.normal_(self.A, std=rank**-0.5)
            nn.init.zeros_(self.B)


class LowRankBranches(nn.Module):
    """Branches that share the feed-forward part, its norm included, but for a low-rank update of both linear layers."""

    training_only = True

    def __init__(self, *, count: int, embed_dim: int, hidden_dim: int, rank: int, init: str = "zero"):
        super().__init__()
        self.linear1 = nn.ModuleList(LowRankUpdate(embed_dim, hidden_dim, rank, init) for _ in range(count))
        self.linear2 = nn.ModuleList(LowRankUpdate(hidden_dim, embed_dim, rank, init) for _ in range(count))

    def forward(self, ffn: FeedForward, x: Tensor, hidden: Tensor) -> Tensor:
        """What enters the feed-forward part (N, Q, embed_dim), and its linear1 of that -> (count, N, Q, embed_dim)."""
        hidden = _updated(hidden[None], x[None], self.linear1)
        hidden = ffn.dropout(F.relu(hidden, inplace=True))
        return ffn.norm(x + ffn.dropout(_updated(ffn.linear2(hidden), hidden, self.linear2)))


class FullBranches(nn.ModuleList):
    """Branches that are feed-forward parts of their own, each with its norm (the paper's architecture c, MS-DETR)."""

    training_only = True

    def __init__(self, *, count: int, embed_dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__(
            FeedForward(embed_dim=embed_dim, hidden_dim=hidden_dim, dropout=dropout) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """What enters the feed-forward part (N, Q, embed_dim) -> (count, N, Q, embed_dim)."""
        return torch.stack([branch(x) for branch in self])


def training_only_names(model: nn.Module) -> set[str]:
    """Names of the tensors of all branches of `model`, as in its state dict: what evaluation has no use for."""
    modules = [(path, module) for path, module in model.named_modules() if getattr(module, "training_only", False)]
    return {f"{path}.{name}" for path, module in modules for name, _ in module.named_parameters()}


def _updated(y: Tensor, x: Tensor, updates: nn.ModuleList) -> Tensor:
    """y + (x A) B of every branch: y, x (1 or count, N, Q, .) -> (count, N, Q, out)."""
    n, q = x.shape[1:3]
    a, b = (torch.stack([getattr(update, name) for update in updates]) for name in "AB")
    tokens, base = x.flatten(1, 2).expand(len(updates), -1, -1), y.flatten(1, 2).expand(len(updates), -1, -1)
    return torch.baddbmm(base, tokens @ a, b).unflatten(1, (n, q))
