"""What both detection transformers share as Detectron2 meta-architectures: images, targets, results, weights."""
import logging
from abc import abstractmethod
from typing import Any, Mapping, Sequence

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from lora_detr import weights
from lora_detr.detections import detect
from lora_detr.encoder import Encoder
from lora_detr.heads import Decoded
from lora_detr.levels import Levels, Neck
from lowrank_d2.layers.boxes import xyxy_to_cxcywh
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling import coco_labels
from lowrank_d2.modeling.predictions import Target
from lowrank_d2.peft import PeftConfig, apply_peft, eval_frozen

logger = logging.getLogger(__name__)


class DetectionTransformer(nn.Module):
    """Losses in training, Detectron2's instances in evaluation; boxes are fractions of the image without padding.

    Attributes:
        boxes_only: needs no masks, in training or elsewhere.
        class_dependent: names of the tensors that a checkpoint of other classes may have in other sizes.
        draws: where assignment and denoising get their random numbers; exchange it to record or replay a step.
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
            pixel_mean, pixel_std: of the channels, on 0..255, in the order of INPUT.FORMAT.
            size_divisibility: the canvas of a batch is the largest image, rounded up to a multiple of this.
            max_detections: of an image.
            slow_parts: names of modules, wherever they stand, and the factors of their learning rates.
        """
        super().__init__()
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.in_features = tuple(in_features)
        self.size_divisibility, self.max_detections = size_divisibility, max_detections
        self.slow_parts = dict(slow_parts)
        self.draws = Draws()
        label_of_class = torch.tensor(coco_labels.label_of_class(num_classes, coco_ids))
        class_of_label = torch.full((coco_labels.num_labels(num_classes, coco_ids),), -1)
        class_of_label[label_of_class] = torch.arange(num_classes)
        for name, table in (
            ("label_of_class", label_of_class),
            ("class_of_label", class_of_label),
            ("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1)),
            ("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1)),
        ):
            self.register_buffer(name, table, persistent=False)

    def finish(self, peft: PeftConfig) -> None:
        """The end of every constructor: remembers the base, adapts it, and prepares for other programs' weights."""
        self._base_shapes = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        apply_peft(self, peft)
        self.register_load_state_dict_pre_hook(_adopt_state_dict)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def class_dependent(self) -> frozenset[str]:
        return frozenset(name for name in self._base_shapes if weights.CLASS_DEPENDENT.search(name))

    def train(self, mode: bool = True) -> "DetectionTransformer":
        super().train(mode)
        if mode:
            eval_frozen(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; `missing_keys` leaves out what was reported to keep its initialisation."""
        incompatible = super().load_state_dict(state_dict, strict=strict, assign=assign)
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in self._reported]
        return incompatible

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image, with "image" (3, H, W) in INPUT.FORMAT and 0..255; in training "instances"
                (gt_classes, gt_boxes); in evaluation optionally "height" and "width" of the wanted results.

        Returns:
            In training the weighted losses by name, in evaluation a dict per image with "instances".
        """
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

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one canvas."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def extract(self, images: ImageList) -> Levels:
        """Normalised images -> the encoder's tokens."""
        padding = torch.ones(len(images), *images.tensor.shape[-2:], dtype=torch.bool, device=self.device)
        for row, (height, width) in zip(padding, images.image_sizes):
            row[:height, :width] = False
        features = self.backbone(images.tensor)
        return self.neck([features[name] for name in self.in_features], padding)

    @abstractmethod
    def decode(self, levels: Levels) -> Decoded:
        """Predictions without branches."""

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


def _adopt_state_dict(model: DetectionTransformer, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: renames the originals' keys, refuses what would leave the model half loaded."""
    tensors = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    tensors = weights.from_upstream({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    model._reported = weights.check_loaded(tensors, model, logger)
    state_dict.update((prefix + name, tensor) for name, tensor in tensors.items())
