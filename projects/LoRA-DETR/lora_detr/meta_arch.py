"""What both detection transformers share as Detectron2 meta-architectures: images, targets, results, weights."""
import logging
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor

from lora_detr import weights
from lora_detr.detections import detect
from lora_detr.encoder import Encoder
from lora_detr.heads import Decoded
from lora_detr.levels import Levels, Neck
from lowrank_d2.layers.boxes import xyxy_to_cxcywh
from lowrank_d2.modeling import coco_labels
from lowrank_d2.modeling.meta_arch import MetaArch
from lowrank_d2.modeling.predictions import Target

logger = logging.getLogger(__name__)


class DetectionTransformer(MetaArch):
    """Losses in training, Detectron2's instances in evaluation; boxes are fractions of the image without padding.

    Attributes:
        boxes_only: needs no masks, in training or elsewhere.
        class_dependent: names of the tensors that a checkpoint of other classes may have in other sizes.
    """

    boxes_only = True

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        neck: Neck,
        encoder: Encoder,
        num_classes: int,
        coco_ids: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        max_detections: int,
        slow_parts: Mapping[str, float],
    ):
        """
        Args:
            in_features: the backbone's maps that are read, finest first.
            num_classes: classes of the data.
            coco_ids: with 80 classes the logits stand at COCO's category ids.
            max_detections: of an image.
            slow_parts: names of modules, wherever they stand, and the factors of their learning rates.
        """
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=size_divisibility)
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.in_features = tuple(in_features)
        self.max_detections = max_detections
        self.slow_parts = dict(slow_parts)
        label_of_class = torch.tensor(coco_labels.label_of_class(num_classes, coco_ids))
        class_of_label = torch.full((coco_labels.num_labels(num_classes, coco_ids),), -1)
        class_of_label[label_of_class] = torch.arange(num_classes)
        self.register_buffer("label_of_class", label_of_class, persistent=False)
        self.register_buffer("class_of_label", class_of_label, persistent=False)

    @property
    def class_dependent(self) -> frozenset[str]:
        return frozenset(name for name in self.base_shapes if weights.CLASS_DEPENDENT.search(name))

    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        tensors = weights.from_upstream(tensors)
        return tensors, weights.check_loaded(tensors, self, logger)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """As MetaArch's; in training the instances need gt_classes and gt_boxes."""
        images = self.preprocess(batched_inputs)
        levels = self.extract(images)
        if self.training:
            return self.losses(levels, [self._target(x["instances"].to(self.device)) for x in batched_inputs])
        decoded = self.decode(levels)
        sizes = zip(images.image_sizes, batched_inputs)
        wanted = [(x.get("height", height), x.get("width", width)) for (height, width), x in sizes]
        return [
            {"instances": detect(logits, boxes, size, self.max_detections, self.class_of_label)}
            for logits, boxes, size in zip(decoded.logits[-1], decoded.boxes[-1], wanted)
        ]

    def extract(self, images: ImageList) -> Levels:
        """Normalised images -> the encoder's tokens."""
        padding = torch.ones(len(images), *images.tensor.shape[-2:], dtype=torch.bool, device=self.device)
        for row, (height, width) in zip(padding, images.image_sizes):
            row[:height, :width] = False
        features = self.backbone(images.tensor)
        return self.neck([features[name] for name in self.in_features], padding)

    @abstractmethod
    def decode(self, levels: Levels, with_branches: bool = False) -> Decoded:
        """
        Args:
            with_branches: also what the branches predict, if there are any.
        """

    @abstractmethod
    def losses(self, levels: Levels, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The weighted losses of a training step."""

    def learning_rates(self) -> dict[str, float]:
        """The modules that learn at another rate, and its factor."""
        paths = [(path, path.split(".")) for path, _ in self.named_modules()]
        return {path: factor for part, factor in self.slow_parts.items() for path, names in paths if part == names[-1]}

    def peft_targets(self) -> tuple[str, ...]:
        """Where low-rank methods go by default: q and v of regular, offsets and values of deformable attention."""
        regular = ("self_attn.q_proj", "self_attn.v_proj")
        deformable = ("sampling_offsets", "value_proj")
        return regular + tuple(f"{block}.{name}" for block in ("self_attn", "cross_attn") for name in deformable)

    def _target(self, instances: Instances) -> Target:
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor
        scale = boxes.new_tensor([width, height, width, height])
        return Target(labels=self.label_of_class[instances.gt_classes], boxes=xyxy_to_cxcywh(boxes) / scale)
