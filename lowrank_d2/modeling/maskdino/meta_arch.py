"""Mask DINO as a Detectron2 meta-architecture."""
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import BitMasks, ImageList, Instances, PolygonMasks
from torch import Tensor

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.boxes import xyxy_to_cxcywh
from lowrank_d2.modeling.branch_settings import BranchSettings
from lowrank_d2.modeling.branch_weights import settle_branches
from lowrank_d2.modeling.denoising import make_queries
from lowrank_d2.modeling.maskdino import configure, weights
from lowrank_d2.modeling.maskdino.decoder import MaskDINODecoder
from lowrank_d2.modeling.maskdino.inference import Frame, InferenceOptions, image_results
from lowrank_d2.modeling.maskdino.pixel_decoder import MaskDINOPixelDecoder
from lowrank_d2.modeling.meta_arch import MetaArch
from lowrank_d2.modeling.predictions import Target
from lowrank_d2.modeling.set_criterion import SetCriterion
from lowrank_d2.peft import PeftConfig

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class MaskDINO(MetaArch):
    """Backbone, pixel decoder, decoder; losses in training, Detectron2's results in evaluation.

    Attributes:
        class_dependent: names of the tensors that a checkpoint of other classes may have in other sizes; what is missing
            of all others, loading says by itself.
    """

    class_dependent = weights.CLASS_DEPENDENT

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_decoder: MaskDINOPixelDecoder,
        decoder: MaskDINODecoder,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        denoising_queries: int,
        denoising_noise: float,
        inference: InferenceOptions,
        mask_padding: bool = False,
        canvas_boxes: bool = False,
        peft: PeftConfig = PeftConfig(),
    ):
        """
        Args:
            denoising_queries: about how many an image gets in training; 0 for none.
            denoising_noise: see `make_queries`.
            mask_padding: padding is neither attended to, nor proposed, nor counted in position encodings (mends Q1).
            canvas_boxes: training boxes are fractions of the canvas, as in inference, not of the image (mends Q2).
            peft: what is added to the base model, and what trains.
        """
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std, size_divisibility=size_divisibility)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.criterion = criterion
        self.denoising_queries, self.denoising_noise = denoising_queries, denoising_noise
        self.inference = inference
        self.mask_padding, self.canvas_boxes = mask_padding, canvas_boxes
        self.finish(peft)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        cfg, peft = configure.resolve(cfg)
        node, head = cfg.MODEL.MaskDINO, cfg.MODEL.SEM_SEG_HEAD
        backbone = build_backbone(cfg)
        shapes = {name: shape for name, shape in backbone.output_shape().items() if name in head.IN_FEATURES}
        return {
            "backbone": backbone,
            "pixel_decoder": MaskDINOPixelDecoder(
                input_shape=shapes,
                encoder_features=head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
                embed_dim=head.CONVS_DIM,
                mask_dim=head.MASK_DIM,
                norm=head.NORM,
                num_layers=head.TRANSFORMER_ENC_LAYERS,
                num_levels=head.TOTAL_NUM_FEATURE_LEVELS,
                num_heads=node.NHEADS,
                feedforward_dim=head.DIM_FEEDFORWARD,
                dropout=node.DROPOUT,
                feature_order=head.FEATURE_ORDER,
                common_stride=head.COMMON_STRIDE,
                aligned_encodings=node.FIX.EXTRA_LEVEL_ENCODING,
            ),
            "decoder": MaskDINODecoder(
                in_channels=head.CONVS_DIM,
                embed_dim=node.HIDDEN_DIM,
                mask_dim=head.MASK_DIM,
                feedforward_dim=node.DIM_FEEDFORWARD,
                num_layers=node.DEC_LAYERS,
                num_levels=head.TOTAL_NUM_FEATURE_LEVELS,
                num_queries=node.NUM_OBJECT_QUERIES,
                num_classes=head.NUM_CLASSES,
                no_object_logit=configure.has_no_object_logit(cfg),
                two_stage=node.TWO_STAGE,
                learn_content=node.LEARN_TGT,
                initial_prediction=node.INITIAL_PRED,
                box_type=node.INITIALIZE_BOX_TYPE,
                enforce_input_proj=node.ENFORCE_INPUT_PROJ,
                branches=BranchSettings.from_node(cfg.MODEL.LORA_DETR, node.NUM_OBJECT_QUERIES),
            ),
            "criterion": SetCriterion.from_config(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": node.SIZE_DIVISIBILITY if node.SIZE_DIVISIBILITY >= 0 else backbone.size_divisibility,
            "denoising_queries": 0 if node.DN == "no" else node.DN_NUM,
            "denoising_noise": node.DN_NOISE_SCALE,
            "inference": configure.inference_options(cfg),
            "mask_padding": node.FIX.PADDING_MASK,
            "canvas_boxes": node.FIX.BOX_CANVAS,
            "peft": peft,
        }

    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        if weights.is_upstream(tensors):
            tensors = weights.from_upstream(tensors)
        settle_branches(tensors, self, logger)
        return tensors, weights.check_loaded(tensors, self.base_shapes, logger)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image, with "image" (C, H, W) in INPUT.FORMAT and 0..255; in training "instances"
                (gt_classes, gt_boxes, gt_masks); in evaluation optionally "height" and "width" of the wanted results.

        Returns:
            In training the weighted losses by name, in evaluation a dict per image with "instances", "sem_seg" and
            "panoptic_seg" as the tasks ask for.
        """
        images = self.preprocess(batched_inputs)
        canvas = tuple(images.tensor.shape[-2:])
        valid = self._valid_share(images) if self.mask_padding else None
        features = self.pixel_decoder(self.backbone(images.tensor), valid)
        if not self.training:
            prediction = self.decoder(features)
            return [
                image_results(prediction.last, i, prediction.mask_features, frame, self.inference)
                for i, frame in enumerate(_frames(canvas, images.image_sizes, batched_inputs))
            ]
        targets = [self._target(x["instances"].to(self.device), canvas) for x in batched_inputs]
        denoising = None
        if self.denoising_queries:
            denoising = make_queries(
                targets,
                self.decoder.label_embedding,
                self.denoising_queries,
                self.denoising_noise,
                self.decoder.num_classes,
                self.draws,
            )
        predictions = self.decoder(features, denoising)
        return self.criterion(predictions, targets, None if denoising is None else denoising.layout, self.draws)

    def components(self) -> dict[str, tuple[str, ...]]:
        """The model's parts, for reports: name -> the modules that it consists of."""
        return {part: (part,) for part in weights.PARTS}

    def peft_parts(self) -> dict[str, tuple[str, ...]]:
        """What MODEL.PEFT.TRAIN can name -> the modules that then train."""
        return {
            "backbone": ("backbone",),
            "full_head": ("pixel_decoder", "decoder"),
            "decoder": ("decoder",),
            "embeddings": tuple(f"decoder.heads.{head}" for head in ("mask_embed", "class_embed", "bbox_embed")),
            "label_embedding": ("decoder.label_embedding",),
        }

    def peft_targets(self) -> tuple[str, ...]:
        """Where LoRA goes by default: q and v of regular, offsets and values of deformable attention."""
        regular = ("self_attn.q_proj", "self_attn.v_proj")
        deformable = ("sampling_offsets", "value_proj")
        return regular + tuple(f"{block}.{name}" for block in ("self_attn", "cross_attn") for name in deformable)

    def _valid_share(self, images: ImageList) -> Tensor:
        """(N, 2): the share of the canvas' rows and columns that an image fills."""
        return torch.tensor(images.image_sizes, device=self.device) / torch.tensor(
            images.tensor.shape[-2:], device=self.device
        )

    def _target(self, instances: Instances, canvas: tuple[int, int]) -> Target:
        height, width = canvas if self.canvas_boxes else instances.image_size
        boxes = instances.gt_boxes.tensor
        masks = true_masks(instances).to(boxes.device)
        padded = masks.new_zeros((len(masks), *canvas))
        padded[:, : masks.shape[1], : masks.shape[2]] = masks
        scale = boxes.new_tensor([width, height, width, height])
        return Target(labels=instances.gt_classes, boxes=xyxy_to_cxcywh(boxes) / scale, masks=padded)


def _frames(
    canvas: tuple[int, int], image_sizes: Sequence[tuple[int, int]], batched_inputs: Sequence[dict[str, Any]]
) -> Iterator[Frame]:
    for (height, width), x in zip(image_sizes, batched_inputs):
        yield Frame(canvas, (height, width), (x.get("height", height), x.get("width", width)))


def true_masks(instances: Instances) -> Tensor:
    """The masks of training instances, in whatever form a mapper gives them: (n, H, W) bool.

    Raises:
        ConfigError: instances without masks.
    """
    if not instances.has("gt_masks"):
        if len(instances):
            raise ConfigError(
                f"{len(instances)} training instances came without gt_masks, which the mask losses need. "
                "With Detectron2's own mapper set MODEL.MASK_ON True."
            )
        return torch.zeros((0, *instances.image_size), dtype=torch.bool)  # that mapper gives empty images none
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor if isinstance(masks, BitMasks) else masks.bool()
