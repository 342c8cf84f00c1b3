"""The queries, and the stages that refine them one after the other; with LORS, around weights that all stages share."""
import contextlib
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors import boxes
from lors.mixing import AdaptiveMixing, MixingSize, Residual, SharedMixing
from lors.sampling import PointSampling, Pyramid
from lors.stage import CoveredAttention, Heads, Stage, StageOutput
from lowrank_d2.layers.low_rank import together
from lowrank_d2.layers.mlp import FeedForward


class Queries(nn.Module):
    """Where the first stage starts.

    Attributes:
        content: learned vectors.
        boxes: cxcywh as fractions of the image. They are the whole image and do not train, as in the authors' code,
            whose checkpoints have them.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.content = nn.Embedding(num_queries, embed_dim)
        self.boxes = nn.Parameter(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(num_queries, 1), requires_grad=False)

    def forward(self, image_sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """
        Args:
            image_sizes: (height, width) of the N images without padding.

        Returns:
            content (N, Q, embed_dim), of mean 0 and variance 1 over each vector, and xyzr (N, Q, 4).
        """
        extents = self.boxes.new_tensor([[width, height, width, height] for height, width in image_sizes])
        content = F.layer_norm(self.content.weight, self.content.weight.shape[-1:])
        return content.expand(len(image_sizes), -1, -1), boxes.from_boxes(self.boxes * extents[:, None])


class Decoder(nn.Module):
    """The stages.

    Attributes:
        shared: what LORS shares among them; None in a plain AdaMixer.
    """

    def __init__(
        self,
        size: MixingSize,
        *,
        num_stages: int,
        num_heads: int,
        feedforward_dim: int,
        num_classes: int,
        adaptive: Optional[Residual] = None,
        static: Optional[Residual] = None,
    ):
        """
        Args:
            size: of sampling and mixing; its embed_dim is that of all.
            adaptive, static: the private parts of LORS; None: every stage has its own kernel generators, or output
                projection.
        """
        super().__init__()
        shared = None
        if adaptive is not None or static is not None:
            shared = SharedMixing(size, adaptive=adaptive is not None, static=static is not None)
        self.shared = shared
        self.stages = nn.ModuleList(
            Stage(
                attention=CoveredAttention(embed_dim=size.embed_dim, num_heads=num_heads),
                sampling=PointSampling(embed_dim=size.embed_dim, groups=size.groups, points=size.in_points),
                mixing=AdaptiveMixing(size, stage, shared=shared, adaptive=adaptive, static=static),
                ffn=FeedForward(embed_dim=size.embed_dim, hidden_dim=feedforward_dim),
                heads=Heads(embed_dim=size.embed_dim, num_classes=num_classes),
            )
            for stage in range(num_stages)
        )

    def forward(self, content: Tensor, xyzr: Tensor, pyramid: Pyramid) -> list[StageOutput]:
        """Content (N, Q, embed_dim) and boxes (N, Q, 4) -> the output of every stage.

        Boxes pass from stage to stage without gradient, so each stage's losses see its own changes of them alone.
        """
        outputs = []
        with contextlib.nullcontext() if self.shared is None else together(self.shared):
            for stage in self.stages:
                output = stage(content, xyzr, pyramid)
                content, xyzr = output.content, output.xyzr.detach()
                outputs.append(output)
        return outputs
