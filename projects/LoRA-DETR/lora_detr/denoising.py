"""Relation-DETR's denoising queries."""
from typing import Optional, Sequence

from torch import nn

from lora_detr.relation import EPS
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.denoising import DenoisingQueries, make_contrastive_queries
from lowrank_d2.modeling.predictions import Target


class Denoising(nn.Module):
    """Noises objects into queries, near ones to be restored and far ones to be refused."""

    def __init__(self, *, num_queries: int, label_noise: float, box_noise: float, num_labels: int, embed_dim: int):
        """
        Args:
            num_queries: of the near ones, about; see `make_contrastive_queries`, as for the noises.
        """
        super().__init__()
        self.label_embedding = nn.Embedding(num_labels, embed_dim)
        self.num_queries, self.label_noise, self.box_noise = num_queries, label_noise, box_noise

    def forward(self, targets: Sequence[Target], draws: Draws) -> Optional[DenoisingQueries]:
        """None without any object."""
        return make_contrastive_queries(
            targets, self.label_embedding, self.num_queries, self.label_noise, self.box_noise, draws, eps=EPS
        )
