"""What a config means: checks before anything is built, then the parts of the model."""
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from lora_detr import losses
from lora_detr.deformable import DeformableDecoder, LearnedQueries, SelectedQueries
from lora_detr.deformable_criterion import DeformableCriterion
from lora_detr.denoising import Denoising
from lora_detr.encoder import Encoder
from lora_detr.levels import Neck
from lora_detr.relation import HybridQueries, RelationDecoder, RelationQueries
from lora_detr.relation_criterion import RelationCriterion
from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling import coco_labels
from lowrank_d2.modeling.branch_settings import BranchSettings
from lowrank_d2.modeling.deformable_transformer import DecoderLayer
from lowrank_d2.modeling.delta_file import with_delta
from lowrank_d2.modeling.matcher import HungarianMatcher

CLASS_LOSSES = {"focal": losses.focal, "quality": losses.quality_focal}


def deformable_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of DeformableDETR's constructor. With MODEL.PEFT.DELTA methods and classes are those of that file.

    Raises:
        ConfigError: a value that no model can be built from, or a delta without the base that it belongs to.
    """
    cfg, peft = with_delta(cfg)
    node = cfg.MODEL.DEFORMABLE_DETR
    _check(node, "MODEL.DEFORMABLE_DETR")
    if node.CLASS_LOSS not in CLASS_LOSSES:
        listed = ", ".join(map(repr, CLASS_LOSSES))
        raise ConfigError(f"MODEL.DEFORMABLE_DETR.CLASS_LOSS is {node.CLASS_LOSS!r}. Use one of {listed}.")
    if node.MIXED_SELECTION and not node.TWO_STAGE:
        raise ConfigError(
            "MODEL.DEFORMABLE_DETR.MIXED_SELECTION is True, but TWO_STAGE is False: there are no selected boxes to mix "
            "with learned contents. Set TWO_STAGE True."
        )
    branches = BranchSettings.from_node(cfg.MODEL.LORA_DETR, node.NUM_QUERIES)
    num_labels = coco_labels.num_labels(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, node.COCO_IDS)
    if node.TWO_STAGE:
        queries = SelectedQueries(num_queries=node.NUM_QUERIES, embed_dim=node.HIDDEN_DIM, mixed=node.MIXED_SELECTION)
    else:
        queries = LearnedQueries(num_queries=node.NUM_QUERIES, embed_dim=node.HIDDEN_DIM)
    return {
        **_common_parts(cfg, node, relation=False),
        "queries": queries,
        "decoder": DeformableDecoder(
            num_layers=node.DEC_LAYERS,
            embed_dim=node.HIDDEN_DIM,
            num_labels=num_labels,
            num_heads_of_classes=node.DEC_LAYERS + int(node.TWO_STAGE),
            look_forward_twice=node.LOOK_FORWARD_TWICE,
            branches_look_forward_twice=node.LOOK_FORWARD_TWICE and node.CROSS_FIRST,  # of MS-DETR's branches alone
            make_layer=lambda: _decoder_layer(node, branches, node.CROSS_FIRST),
        ),
        "criterion": DeformableCriterion(
            matcher=_matcher(node, focal_eps=1e-8),
            anchor_matcher=_box_matcher(node),
            class_loss=CLASS_LOSSES[node.CLASS_LOSS],
            weights=_weights(node),
            branch_weights=_branch_weights(node, branches),
            encoder_weights=_weights(node.ENCODER),
            assigner=branches.assigner() if branches else None,
            branch_suffix="_o2m" if node.CROSS_FIRST and branches and branches.count == 1 else "_o2m_lora_{}",
        ),
        "peft": peft,
    }


def relation_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of RelationDETR's constructor, as `deformable_parts`.

    Raises:
        ConfigError: a value that no model can be built from, or a delta without the base that it belongs to.
    """
    cfg, peft = with_delta(cfg)
    node = cfg.MODEL.RELATION_DETR
    _check(node, "MODEL.RELATION_DETR")
    for key, value in (("HYBRID.NUM_QUERIES", node.HYBRID.NUM_QUERIES), ("HYBRID.REPEATS", node.HYBRID.REPEATS)):
        if value < 1:
            raise ConfigError(f"MODEL.RELATION_DETR.{key} is {value}. Use an integer of 1 or more.")
    if not 0 <= node.DENOISING.LABEL_NOISE <= 2:
        raise ConfigError(
            f"MODEL.RELATION_DETR.DENOISING.LABEL_NOISE is {node.DENOISING.LABEL_NOISE}, half of which is a share of "
            "the labels. Use a number from 0 to 2."
        )
    branches = BranchSettings.from_node(cfg.MODEL.LORA_DETR, node.NUM_QUERIES)
    sizes = {
        "embed_dim": node.HIDDEN_DIM,
        "num_labels": coco_labels.num_labels(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, node.COCO_IDS),
    }
    return {
        **_common_parts(cfg, node, relation=True),
        "queries": RelationQueries(num_queries=node.NUM_QUERIES, **sizes),
        "hybrid": HybridQueries(num_queries=node.HYBRID.NUM_QUERIES, **sizes),
        "denoising": Denoising(
            num_queries=node.DENOISING.NUM_QUERIES,
            label_noise=node.DENOISING.LABEL_NOISE,
            box_noise=node.DENOISING.BOX_NOISE,
            **sizes,
        ),
        "decoder": RelationDecoder(
            num_layers=node.DEC_LAYERS,
            num_heads=node.NHEADS,
            make_layer=lambda: _decoder_layer(node, branches, cross_first=False),
            **sizes,
        ),
        "criterion": RelationCriterion(
            matcher=_matcher(node, focal_eps=1e-6),
            anchor_matcher=_box_matcher(node) if node.ENCODER.MATCH_ANCHORS else None,
            weights=_weights(node),
            extra_weights=_weights(node.EXTRA),
            branch_weights=_branch_weights(node, branches),
            encoder_weights=_weights(node.ENCODER),
            repeats=node.HYBRID.REPEATS,
            assigner=branches.assigner() if branches else None,
        ),
        "peft": peft,
    }


def _common_parts(cfg: CfgNode, node: CfgNode, relation: bool) -> dict[str, Any]:
    """The arguments of `DetectionTransformer`, for Relation-DETR or Deformable DETR."""
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    unknown = [name for name in node.IN_FEATURES if name not in shapes]
    if unknown or not node.IN_FEATURES or len(node.IN_FEATURES) > node.NUM_LEVELS:
        raise ConfigError(
            f"IN_FEATURES {list(node.IN_FEATURES)} must be one or more of the backbone's {sorted(shapes)}, and no more "
            f"than NUM_LEVELS {node.NUM_LEVELS}. Change one of the two, or the backbone's OUT_FEATURES."
        )
    return {
        "backbone": backbone,
        "in_features": node.IN_FEATURES,
        "neck": Neck(
            in_channels=[shapes[name].channels for name in node.IN_FEATURES],
            embed_dim=node.HIDDEN_DIM,
            num_levels=node.NUM_LEVELS,
            bias=not relation,
        ),
        "encoder": Encoder(
            num_layers=node.ENC_LAYERS,
            embed_dim=node.HIDDEN_DIM,
            feedforward_dim=node.DIM_FEEDFORWARD,
            num_heads=node.NHEADS,
            num_levels=node.NUM_LEVELS,
            num_points=node.NUM_POINTS,
            dropout=node.DROPOUT,
            fusion=relation,
        ),
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "coco_ids": node.COCO_IDS,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": 32 if relation else 0,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "slow_parts": dict.fromkeys(node.SLOW_PARTS, node.SLOW_FACTOR),
    }


def _decoder_layer(node: CfgNode, branches: Optional[BranchSettings], cross_first: bool) -> DecoderLayer:
    sizes = {"embed_dim": node.HIDDEN_DIM, "dropout": node.DROPOUT}
    return DecoderLayer(
        **sizes,
        feedforward_dim=node.DIM_FEEDFORWARD,
        num_heads=node.NHEADS,
        num_levels=node.NUM_LEVELS,
        num_points=node.NUM_POINTS,
        cross_first=cross_first,
        branches=branches.build(**sizes, hidden_dim=node.DIM_FEEDFORWARD) if branches else None,
    )


def _matcher(node: CfgNode, focal_eps: float) -> HungarianMatcher:
    return HungarianMatcher(
        cost_class=node.COST_CLASS_WEIGHT,
        cost_box=node.COST_BOX_WEIGHT,
        cost_giou=node.COST_GIOU_WEIGHT,
        giou_eps=0.0,
        focal_eps=focal_eps,
    )


def _box_matcher(node: CfgNode) -> HungarianMatcher:
    """For anchors, which have no class."""
    return HungarianMatcher(
        cost_class=0.0, cost_box=node.COST_BOX_WEIGHT, cost_giou=node.COST_GIOU_WEIGHT, giou_eps=0.0
    )


def _weights(node: CfgNode) -> dict[str, float]:
    return {"class": node.CLASS_WEIGHT, "bbox": node.BOX_WEIGHT, "giou": node.GIOU_WEIGHT}


def _branch_weights(node: CfgNode, branches: Optional[BranchSettings]) -> dict[str, float]:
    if branches is None:
        return {}
    factor = branches.loss_weight / branches.count
    return {name: weight * factor for name, weight in _weights(node.BRANCH).items()}


def _check(node: CfgNode, name: str) -> None:
    for key in ("NHEADS", "NUM_POINTS", "NUM_LEVELS", "ENC_LAYERS", "DEC_LAYERS", "DIM_FEEDFORWARD", "NUM_QUERIES"):
        if node[key] < 1:
            raise ConfigError(f"{name}.{key} is {node[key]}. Use an integer of 1 or more.")
    if node.HIDDEN_DIM < 1 or node.HIDDEN_DIM % 32 or node.HIDDEN_DIM % node.NHEADS:
        raise ConfigError(
            f"{name}.HIDDEN_DIM is {node.HIDDEN_DIM}, which the 32 groups of the norms and {node.NHEADS} heads cannot "
            "share. Choose a multiple of both."
        )
    if not 0 <= node.DROPOUT < 1:
        raise ConfigError(f"{name}.DROPOUT is {node.DROPOUT}. Use a number of at least 0 and below 1.")
