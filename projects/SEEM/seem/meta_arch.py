"""SEEM (https://arxiv.org/abs/2304.06718) as a Detectron2 meta-architecture: masks of whatever words name.

Of the original, this is what segments and classifies; its prompts by strokes, sentences and examples are left out.
"""
import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from lowrank_d2.modeling.maskdino.meta_arch import true_masks
from lowrank_d2.modeling.meta_arch import MetaArch
from lowrank_d2.modeling.predictions import Predictions, Target
from lowrank_d2.modeling.set_criterion import SetCriterion
from lowrank_d2.peft import PeftConfig
from lowrank_d2.peft.trainable import added_names
from seem import configure, weights
from seem.class_text import ClassText
from seem.decoder import SEEMDecoder
from seem.focalnet import FocalNet
from seem.inference import InferenceOptions, SmoothFrame, image_results
from seem.pixel_decoder import SEEMPixelDecoder

logger = logging.getLogger(__name__)

LOSS_NAMES = {"loss_ce": "loss_mask_ce", "loss_mask": "loss_mask_bce", "loss_dice": "loss_mask_dice"}


@META_ARCH_REGISTRY.register()
class SEEM(MetaArch):
    """Backbone, pixel decoder, decoder and the words; losses in training, Detectron2's results in evaluation.

    Attributes:
        class_dependent: names of the tensors that depend on the classes: none, so that any words do.
        from_upstream: published names -> ours, for tuned files of the paper's authors.
        class_names: what the outputs are called, in their order.
    """

    class_dependent: frozenset[str] = frozenset()
    from_upstream = staticmethod(weights.from_upstream)

    @configurable
    def __init__(
        self,
        *,
        backbone: FocalNet,
        pixel_decoder: SEEMPixelDecoder,
        decoder: SEEMDecoder,
        text: ClassText,
        criterion: SetCriterion,
        class_names: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        inference: InferenceOptions,
        freeze_text: bool = False,
        text_multiplier: float = 1.0,
        embeddings_multiplier: float = 1.0,
        peft: PeftConfig = PeftConfig(),
    ):
        """
        Args:
            freeze_text: the words' part trains with none of MODEL.PEFT.TRAIN's values.
            text_multiplier, embeddings_multiplier: learning rates of the words' part, and of the class and mask heads
                beside what methods add, relative to the others'.
            peft: what is added to the base model, and what trains.
        """
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=size_divisibility)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.text = text
        self.criterion = criterion
        self.class_names = list(class_names)
        self.inference = inference
        self.freeze_text = freeze_text
        self.text_multiplier, self.embeddings_multiplier = text_multiplier, embeddings_multiplier
        if freeze_text:
            text.requires_grad_(False)
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return configure.build_parts(cfg)

    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        if weights.is_upstream(tensors):
            tensors = weights.from_upstream(tensors)
        weights.check_loaded(tensors, self.base_shapes, added_names(self), logger)
        return tensors, ()

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image, with "image" (3, H, W) in INPUT.FORMAT and 0..255; in training "instances"
                (gt_classes, gt_masks); in evaluation optionally "height" and "width" of the wanted results.

        Returns:
            In training the weighted losses by the original's names, in which 0 is the last prediction; in evaluation a
            dict per image with "instances", "sem_seg" and "panoptic_seg" as the tasks ask for.
        """
        images = self.preprocess(batched_inputs)
        canvas = tuple(images.tensor.shape[-2:])
        predictions = self.predict(images.tensor)
        if not self.training:
            frames = [
                SmoothFrame(canvas, size, (x.get("height", size[0]), x.get("width", size[1])))
                for size, x in zip(images.image_sizes, batched_inputs)
            ]
            return [image_results(predictions, i, frame, self.inference) for i, frame in enumerate(frames)]
        targets = [_target(x["instances"].to(self.device), canvas) for x in batched_inputs]
        losses = self.criterion(predictions, targets, None, self.draws)
        return _by_original_names(losses, len(predictions.aux))

    def predict(self, images: Tensor) -> Predictions:
        """Normalised images (N, 3, H, W), of sides that are multiples of 32 -> all predictions."""
        text = self.text(self.training, self.draws)
        return self.decoder(self.pixel_decoder(self.backbone(images)), text, self.text.logit_scale)

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {"backbone": ("backbone",), "pixel_decoder": ("pixel_decoder",), "decoder": ("decoder",), "text": ("text",)}

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train. In the original the words are in the decoder."""
        decoder = ("decoder",) if self.freeze_text else ("decoder", "text")
        return {
            "backbone": ("backbone",),
            "full_head": ("pixel_decoder", *decoder),
            "decoder": decoder,
            "embeddings": ("decoder.class_embed", "decoder.mask_embed"),
        }

    def peft_targets(self) -> tuple[str, ...]:
        """Where low-rank methods go by default: q and v of all attentions to pixels and queries."""
        return tuple(f"{block}.{name}" for block in ("self_attn", "cross_attn") for name in ("q_proj", "v_proj"))

    def learning_rates(self) -> dict[str, float]:
        """Module or parameter -> its learning rate relative to SOLVER.BASE_LR."""
        rates = {"text": self.text_multiplier}
        if self.peft_config.methods:
            rates |= {name: self.embeddings_multiplier for name in self.peft_parts()["embeddings"]}
        return rates


def _target(instances: Instances, canvas: tuple[int, int]) -> Target:
    masks = true_masks(instances).to(instances.gt_classes.device)
    padded = masks.new_zeros((len(masks), *canvas))
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return Target(labels=instances.gt_classes, masks=padded)


def _by_original_names(losses: dict[str, Tensor], num_aux: int) -> dict[str, Tensor]:
    """{"loss_ce", "loss_ce_0", ...} -> {"loss_mask_ce_0", "loss_mask_ce_9", ...}: the original counts from the last."""
    named = {}
    for name, loss in losses.items():
        base, _, layer = name.rpartition("_") if name[-1].isdigit() else (name, "", num_aux)
        named[f"{LOSS_NAMES[base]}_{num_aux - int(layer)}"] = loss
    return named
