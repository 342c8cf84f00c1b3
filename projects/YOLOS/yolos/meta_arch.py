"""YOLOS (arXiv:2106.00666) as a Detectron2 meta-architecture: a plain vision transformer that answers with boxes."""
import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from lowrank_d2.layers.boxes import xyxy_to_cxcywh
from lowrank_d2.layers.mlp import MLP
from lowrank_d2.modeling import coco_labels
from lowrank_d2.modeling.meta_arch import MetaArch
from lowrank_d2.modeling.predictions import Prediction, Target
from lowrank_d2.peft import PeftConfig
from yolos import configure, weights
from yolos.criterion import YOLOSCriterion
from yolos.decode import DecodeOptions, decode
from yolos.positions import grid_of
from yolos.vit import DetectionViT

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # height and width


@META_ARCH_REGISTRY.register()
class YOLOS(MetaArch):
    """Losses in training, Detectron2's instances in evaluation.

    Images of a batch are padded with zeros (the mean colour) to the right and below; nothing masks the padding, as in
    the original, so an image's results depend on its company. Boxes are fractions of the image without padding.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: DetectionViT,
        embed_dim: int,
        criterion: YOLOSCriterion,
        num_classes: int,
        coco_ids: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        options: DecodeOptions,
        peft: PeftConfig = PeftConfig(),
    ):
        """
        Args:
            backbone: images to detection tokens of width `embed_dim`.
            num_classes: classes of the data.
            coco_ids: with 80 classes the logits stand at COCO's category ids.
            options: how predictions become instances.
            peft: what is added to the base model, and what trains.
        """
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        outputs = coco_labels.num_labels(num_classes, coco_ids) + 1
        self.backbone = backbone
        self.class_embed = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=outputs, num_layers=3)
        self.bbox_embed = MLP(input_dim=embed_dim, hidden_dim=embed_dim, output_dim=4, num_layers=3)
        self.criterion = criterion
        self.options = options
        label_of_class = torch.tensor(coco_labels.label_of_class(num_classes, coco_ids), dtype=torch.int64)
        class_of_label = torch.full((outputs - 1,), -1)
        class_of_label[label_of_class] = torch.arange(num_classes)
        self.register_buffer("label_of_class", label_of_class, persistent=False)
        self.register_buffer("class_of_label", class_of_label, persistent=False)
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return configure.build_parts(cfg)

    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        if weights.is_transformers(tensors):
            tensors = weights.from_transformers(tensors)
            eps = self.backbone.norm.eps
            if eps != weights.TRANSFORMERS_EPS:
                logger.warning(
                    "These are transformers' weights, and MODEL.YOLOS.LAYER_NORM_EPS is %g. To get transformers' numbers "
                    "exactly, set it to the layer_norm_eps of their config.json (published: %g).",
                    eps, weights.TRANSFORMERS_EPS,
                )
        elif weights.is_classifier(tensors):
            det_positions = self.backbone.pos_embed.detach()[:, -self.backbone.num_det_tokens :]
            tensors = weights.from_classifier(tensors, self.backbone.initial_grid, det_positions)
        weights.check_loaded(tensors, self.base_shapes, logger)
        return tensors, ()

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """As MetaArch's; in training the instances need gt_classes and gt_boxes."""
        images = self.preprocess(batched_inputs)
        prediction = self.predict(images.tensor)
        seen = [self._seen(size, images.tensor.shape[-2:]) for size in images.image_sizes]
        if self.training:
            targets = [self._target(x["instances"].to(self.device), size) for x, size in zip(batched_inputs, seen)]
            return self.criterion(prediction, targets)
        results = []
        for logits, boxes, x, size, (rows, columns) in zip(
            prediction.logits, prediction.boxes, batched_inputs, images.image_sizes, seen
        ):
            wanted = (x.get("height", size[0]), x.get("width", size[1]))
            extent = (wanted[0] * rows / size[0], wanted[1] * columns / size[1])
            results.append({"instances": decode(logits, boxes, self.class_of_label, wanted, extent, self.options)})
        return results

    def predict(self, images: Tensor) -> Prediction:
        """Normalised images (N, 3, H, W) -> logits (N, Q, labels + 1) and boxes (N, Q, 4) cxcywh in [0, 1]."""
        tokens = self.backbone(images)
        return Prediction(self.class_embed(tokens), self.bbox_embed(tokens).sigmoid())

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {"backbone": ("backbone",), "heads": ("class_embed", "bbox_embed")}

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train."""
        return {"backbone": ("backbone",), "embeddings": ("class_embed", "bbox_embed")}

    def peft_targets(self) -> tuple[str, ...]:
        """Where low-rank methods go by default: the query and value rows of every block."""
        return ("qkv[q,v]",)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: the backbone's vectors, tokens and first positions.

        As in the original, the positions between the blocks and all of the heads do decay.
        """
        exempt = {"backbone.pos_embed", "backbone.cls_token", "backbone.det_token"}
        return exempt | {name for name, parameter in self.backbone.named_parameters("backbone") if parameter.dim() == 1}

    def _seen(self, size: Size, canvas: Sequence[int]) -> Size:
        """The part of an image that lies in whole patches of the canvas; boxes are fractions of it."""
        patch = self.backbone.patch_size
        rows, columns = grid_of(*canvas, patch)
        return min(size[0], rows * patch), min(size[1], columns * patch)

    def _target(self, instances: Instances, seen: Size) -> Target:
        boxes = instances.gt_boxes.clone()
        boxes.clip(seen)
        kept = boxes.nonempty()
        height, width = seen
        scale = boxes.tensor.new_tensor([width, height, width, height])
        return Target(
            labels=self.label_of_class[instances.gt_classes[kept]], boxes=xyxy_to_cxcywh(boxes.tensor[kept]) / scale
        )
