"""Mask DINO's prediction heads: one set for the query selection, the initial queries and every decoder layer."""
from torch import Tensor, nn

from lowrank_d2.layers.boxes import inverse_sigmoid
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.mlp import MLP
from lowrank_d2.modeling.predictions import Prediction


class PredictionHeads(nn.Module):
    """Class, mask and box heads, and the norm in front of the first two (which also ends the decoder)."""

    def __init__(self, *, embed_dim: int, num_logits: int, mask_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.class_embed = Linear(embed_dim, num_logits)
        self.mask_embed = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=mask_dim, num_layers=3)
        self.bbox_embed = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=4, num_layers=3)
        nn.init.zeros_(self.bbox_embed.layers[-1].weight)
        nn.init.zeros_(self.bbox_embed.layers[-1].bias)

    def forward(self, x: Tensor, boxes: Tensor) -> Prediction:
        """Queries (N, Q, embed_dim) and their boxes (N, Q, 4) -> their prediction."""
        x = self.norm(x)
        return Prediction(logits=self.class_embed(x), boxes=boxes, mask_embed=self.mask_embed(x))

    def refine(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Moves boxes (N, Q, 4) cxcywh in [0, 1] by what the box head reads from the queries (N, Q, embed_dim)."""
        return (self.bbox_embed(x) + inverse_sigmoid(boxes)).sigmoid()
