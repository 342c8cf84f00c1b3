"""The deformable encoder, and its tokens as proposals of boxes (arXiv:2010.04159)."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_detr.levels import Levels
from lowrank_d2.layers.linear import Linear
from lowrank_d2.modeling.deformable_transformer import EncoderLayer


class Encoder(nn.Module):
    """Mixes the levels; with `fusion` the result reads all layers' outputs (Relation-DETR)."""

    def __init__(
        self,
        *,
        num_layers: int,
        embed_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
        fusion: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(
                embed_dim=embed_dim,
                feedforward_dim=feedforward_dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.fusion = None
        if fusion:
            self.fusion = nn.Sequential(
                Linear((num_layers + 1) * embed_dim, embed_dim),
                nn.ReLU(inplace=True),
                Linear(embed_dim, embed_dim),
                nn.LayerNorm(embed_dim),
            )
            xavier_linears(self.fusion)

    def forward(self, levels: Levels) -> Tensor:
        """The memory: (N, S, embed_dim)."""
        reference = levels.on_levels(levels.centers)
        outputs = [levels.tokens]
        for layer in self.layers:
            outputs.append(layer(outputs[-1], levels.pos, reference, levels.shapes, levels.padding))
        return outputs[-1] if self.fusion is None else self.fusion(torch.cat(outputs, dim=-1))


@dataclass(frozen=True)
class Proposals:
    """Boxes that the encoder's tokens propose.

    Attributes:
        logits: (N, T, C).
        boxes_unsigmoid: (N, T, 4) cxcywh before the sigmoid, with gradient.
        anchors: (N, T, 4) cxcywh, the boxes from which they were refined; 1 for tokens that propose nothing.
        chosen: (N, Q), the tokens that became queries, best first.
    """

    logits: Tensor
    boxes_unsigmoid: Tensor
    anchors: Tensor
    chosen: Tensor

    @property
    def boxes(self) -> Tensor:
        return self.boxes_unsigmoid.sigmoid()


class ProposalTokens(nn.Module):
    """Prepares the memory for scoring: tokens of padding, and those whose box would leave the image, all look alike."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.enc_output = Linear(embed_dim, embed_dim)
        self.enc_output_norm = nn.LayerNorm(embed_dim)
        xavier_linears(self)

    def forward(self, memory: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
        """The memory (N, S, D) -> tokens of the same shape, and anchors (N, S, 4) as of `make_anchors`."""
        anchors = make_anchors(levels)
        silent = anchors[..., :1].isinf()
        return self.enc_output_norm(self.enc_output(memory.masked_fill(silent, 0))), anchors


def make_anchors(levels: Levels) -> Tensor:
    """One box per token, larger from level to level, before the sigmoid; infinite on padding and at the border.

    Returns:
        (N, S, 4) cxcywh
    """
    sides = [levels.centers.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(levels.shapes)]
    boxes = torch.cat((levels.centers, torch.cat(sides).expand(len(levels.centers), -1, -1)), dim=-1)
    inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~levels.padding
    return torch.log(boxes / (1 - boxes)).masked_fill(~inside[..., None], torch.inf)


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """The tokens (N, Q) of (N, S, D): (N, Q, D)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def xavier_linears(module: nn.Module) -> None:
    """Starts all linear layers below `module` uniform after Xavier, with biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
