"""Relation-DETR with branches as a Detectron2 meta-architecture."""
from typing import Any, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from lora_detr import configure
from lora_detr.denoising import Denoising
from lora_detr.encoder import Proposals, gather
from lora_detr.heads import Decoded
from lora_detr.levels import Levels
from lora_detr.meta_arch import DetectionTransformer
from lora_detr.relation import HybridQueries, RelationDecoder, RelationQueries
from lora_detr.relation_criterion import RelationCriterion
from lowrank_d2.modeling.predictions import Target
from lowrank_d2.peft import PeftConfig


@META_ARCH_REGISTRY.register()
class RelationDETR(DetectionTransformer):
    """Relation-DETR (arXiv:2407.11699) with LoRA-DETR's branches; hybrid and denoising queries serve training alone."""

    @configurable
    def __init__(
        self,
        *,
        queries: RelationQueries,
        hybrid: HybridQueries,
        denoising: Denoising,
        decoder: RelationDecoder,
        criterion: RelationCriterion,
        peft: PeftConfig = PeftConfig(),
        **common: Any,
    ):
        """
        Args:
            common: of `DetectionTransformer`.
        """
        super().__init__(**common)
        self.queries, self.hybrid, self.denoising = queries, hybrid, denoising
        self.decoder, self.criterion = decoder, criterion
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return configure.relation_parts(cfg)

    def decode(self, levels: Levels, with_branches: bool = False) -> Decoded:
        memory = self.encoder(levels)
        proposals, *_ = self.queries(memory, levels)
        content, reference = self.queries.contents(proposals.chosen), _references(proposals)
        branches_from = 0 if with_branches and self.criterion.assigner is not None else None
        return self.decoder(content, reference, memory, levels, branches_from=branches_from)

    def losses(self, levels: Levels, targets: Sequence[Target]) -> dict[str, Tensor]:
        memory = self.encoder(levels)
        proposals, tokens, anchors = self.queries(memory, levels)
        content, reference = self.queries.contents(proposals.chosen), _references(proposals)
        noised, blocked, pad = self.denoising(targets, self.draws), None, 0
        if noised is None:  # every parameter takes part in a step
            content = content + 0.0 * self.denoising.label_embedding.weight.sum()
        else:
            pad, blocked = noised.layout.pad, noised.attention_mask(content.shape[1])
            content = torch.cat((noised.content, content), dim=1)
            reference = torch.cat((noised.boxes_unsigmoid.sigmoid(), reference), dim=1)
        branches_from = None if self.criterion.assigner is None else pad
        decoded = self.decoder(content, reference, memory, levels, blocked=blocked, branches_from=branches_from)
        near, primary = decoded.split(pad)

        hybrid = self.hybrid(tokens, anchors)
        more = self.decoder(
            self.hybrid.contents(hybrid.chosen), hybrid.boxes.detach(), memory, levels, relation=False
        )
        return {
            **self.criterion.primary(primary, proposals, targets, self.draws),
            **self.criterion.denoising(near, None if noised is None else noised.layout, targets),
            **self.criterion.hybrid(more, hybrid, targets),
        }

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {
            "backbone": ("backbone",),
            "encoder": ("neck", "encoder"),
            "decoder": ("queries", "decoder"),
            "training_queries": ("hybrid", "denoising"),
        }

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train."""
        heads = ("decoder.class_embed", "decoder.bbox_embed", "queries.class_head", "queries.bbox_head")
        return {
            "backbone": ("backbone",),
            "full_head": ("neck", "encoder", "queries", "decoder", "hybrid", "denoising"),
            "decoder": ("queries", "decoder", "hybrid", "denoising"),
            "embeddings": (*heads, "hybrid.class_head", "hybrid.bbox_head"),
            "label_embedding": ("denoising.label_embedding",),
        }


def _references(proposals: Proposals) -> Tensor:
    """The boxes (N, Q, 4) of the chosen tokens, after the sigmoid and without gradient."""
    return gather(proposals.boxes_unsigmoid.detach(), proposals.chosen).sigmoid()
