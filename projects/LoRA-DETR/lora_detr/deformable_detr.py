"""Deformable DETR with branches as a Detectron2 meta-architecture."""
from typing import Any, Optional, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from lora_detr import configure
from lora_detr.deformable import DeformableDecoder, LearnedQueries, SelectedQueries
from lora_detr.deformable_criterion import DeformableCriterion
from lora_detr.encoder import Proposals
from lora_detr.heads import Decoded
from lora_detr.levels import Levels
from lora_detr.meta_arch import DetectionTransformer
from lowrank_d2.modeling.predictions import Target
from lowrank_d2.peft import PeftConfig


@META_ARCH_REGISTRY.register()
class DeformableDETR(DetectionTransformer):
    """Deformable DETR (arXiv:2010.04159) with iterative boxes, one-stage or two-stage, and LoRA-DETR's branches."""

    @configurable
    def __init__(
        self,
        *,
        queries: LearnedQueries | SelectedQueries,
        decoder: DeformableDecoder,
        criterion: DeformableCriterion,
        peft: PeftConfig = PeftConfig(),
        **common: Any,
    ):
        """
        Args:
            common: of `DetectionTransformer`.
        """
        super().__init__(**common)
        self.queries, self.decoder, self.criterion = queries, decoder, criterion
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return configure.deformable_parts(cfg)

    def decode(self, levels: Levels, with_branches: bool = False) -> Decoded:
        return self._decode(levels, with_branches)[0]

    def losses(self, levels: Levels, targets: Sequence[Target]) -> dict[str, Tensor]:
        decoded, proposals = self._decode(levels, with_branches=True)
        return self.criterion(decoded, proposals, targets, self.draws)

    def _decode(self, levels: Levels, with_branches: bool) -> tuple[Decoded, Optional[Proposals]]:
        memory, proposals = self.encoder(levels), None
        if isinstance(self.queries, SelectedQueries):
            heads = self.decoder.class_embed[-1], self.decoder.bbox_embed[-1]
            queries, proposals = self.queries(memory, levels, *heads)
        else:
            queries = self.queries(len(memory))
        with_branches = with_branches and self.criterion.assigner is not None
        return self.decoder(queries, memory, levels, with_branches), proposals

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {"backbone": ("backbone",), "encoder": ("neck", "encoder"), "decoder": ("queries", "decoder")}

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train."""
        return {
            "backbone": ("backbone",),
            "full_head": ("neck", "encoder", "queries", "decoder"),
            "decoder": ("queries", "decoder"),
            "embeddings": ("decoder.class_embed", "decoder.bbox_embed"),
        }
