"""AdaMixer (arXiv:2203.16507) as a Detectron2 meta-architecture, plain or with LORS (arXiv:2403.04303)."""
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lors import configure, weights
from lors.criterion import AdaMixerCriterion, Objects
from lors.decode import decode
from lors.decoder import Decoder, Queries
from lors.mixing import MixingSize
from lors.neck import Neck
from lors.sampling import Pyramid
from lors.stage import StageOutput
from lowrank_d2.modeling.meta_arch import MetaArch
from lowrank_d2.peft import PeftConfig

logger = logging.getLogger(__name__)

PADDED_TO = 32  # images of a batch are padded to a multiple of this, the coarsest stride


@META_ARCH_REGISTRY.register()
class AdaMixer(MetaArch):
    """Backbone, neck, queries and decoder; losses in training, Detectron2's instances in evaluation.

    Norms of the backbone keep their statistics, as in the authors' code, but their scales and shifts train.

    Attributes:
        class_dependent: names of the tensors that a checkpoint of other classes may have in other sizes.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        features: Mapping[str, int],
        neck: Neck,
        queries: Queries,
        decoder: Decoder,
        mixing_size: MixingSize,
        criterion: AdaMixerCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        frozen_stages: int,
        max_detections: int,
        peft: PeftConfig = PeftConfig(),
    ):
        """
        Args:
            features: name and stride of the backbone's maps that are sampled, in the order of the neck.
            mixing_size: of the decoder.
            frozen_stages: of a ResNet, 1 freezes the stem, k the stages up to res_k too.
            max_detections: of an image, if it has not fewer queries.
            peft: what is added to the base model, and what trains.
        """
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=PADDED_TO)
        self.backbone = backbone
        self.neck = neck
        self.queries = queries
        self.decoder = decoder
        self.features = dict(features)
        self.mixing_size = mixing_size
        self.criterion = criterion
        self.max_detections = max_detections
        for name in ("stem", *(f"res{k}" for k in range(2, frozen_stages + 1)))[: max(frozen_stages, 0)]:
            if hasattr(backbone, name):
                getattr(backbone, name).requires_grad_(False)
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return configure.build_parts(cfg)

    def train(self, mode: bool = True) -> "AdaMixer":
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def class_dependent(self) -> frozenset[str]:
        return frozenset(name for name in self.base_shapes if weights.CLASS_DEPENDENT.fullmatch(name))

    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        tensors = weights.from_upstream(tensors, self.mixing_size)
        return tensors, weights.check_loaded(tensors, self.base_shapes, logger)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """As MetaArch's; in training the instances need gt_classes and gt_boxes."""
        images = self.preprocess(batched_inputs)
        outputs = self.predict(images)
        if self.training:
            losses, accuracies = self.criterion(outputs, [self._truth(x["instances"]) for x in batched_inputs])
            _record(accuracies)
            return losses
        results = []
        for logits, boxes, size, x in zip(outputs[-1].logits, outputs[-1].boxes, images.image_sizes, batched_inputs):
            wanted = (x.get("height", size[0]), x.get("width", size[1]))
            results.append({"instances": decode(logits, boxes, size, wanted, self.max_detections)})
        return results

    def predict(self, images: ImageList) -> list[StageOutput]:
        """The outputs of all stages for normalised images."""
        maps = self.backbone(images.tensor)
        pyramid = Pyramid.of(self.neck([maps[name] for name in self.features]), self.features.values())
        content, xyzr = self.queries(images.image_sizes)
        return self.decoder(content, xyzr, pyramid)

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {part: (part,) for part in weights.PARTS}

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train."""
        heads = tuple(f"decoder.stages.{i}.heads" for i in range(len(self.decoder.stages)))
        return {
            "backbone": ("backbone",),
            "full_head": ("neck", "queries.content", "decoder"),
            "decoder": ("decoder",),
            "embeddings": heads,
        }

    def peft_targets(self) -> tuple[str, ...]:
        """Where low-rank methods go by default: query and value of the attention, and the sampling offsets."""
        return ("attention.qkv[q,v]", "sampling.offsets")

    def _truth(self, instances: Instances) -> Objects:
        instances = instances.to(self.device)
        kept = instances.gt_boxes.nonempty()
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor[kept]
        return Objects(instances.gt_classes[kept], boxes, boxes.new_tensor([width, height, width, height]))


def _record(accuracies: Mapping[str, Tensor]) -> None:
    """Shows how many matched queries have the right class, in training runs."""
    with contextlib.suppress(AssertionError):  # outside of a run there is no storage
        storage = get_event_storage()
        storage.put_scalars(**dict(zip(accuracies, torch.stack(list(accuracies.values())).tolist())))
