"""What an AdaMixer config means: checks before anything is built, then the parts of the model."""
from typing import Any, Optional, Sequence

from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

from lors.config import LORS_ADAPTIVE_GROUPS, LORS_STATIC_GROUPS
from lors.criterion import AdaMixerCriterion, Weights
from lors.decoder import Decoder, Queries
from lors.mixing import MixingSize, Residual
from lors.neck import Neck
from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.delta_file import with_delta


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of AdaMixer's constructor. With MODEL.PEFT.DELTA the methods and classes are those of that file.

    Raises:
        ConfigError: a value that no AdaMixer can be built from, or a delta without the base that it belongs to.
    """
    cfg, peft = with_delta(cfg)
    node, num_classes = cfg.MODEL.ADAMIXER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    _check(node)
    backbone = _backbone(cfg)
    shapes = backbone.output_shape()
    absent = [name for name in node.IN_FEATURES if name not in shapes]
    if absent:
        raise ConfigError(
            f"MODEL.ADAMIXER.IN_FEATURES names {', '.join(absent)}, which the backbone does not give. Choose of "
            f"{', '.join(shapes)}, or change MODEL.RESNETS.OUT_FEATURES or MODEL.SWIN.OUT_FEATURES."
        )
    size = MixingSize(node.EMBED_DIM, node.SAMPLING_GROUPS, node.IN_POINTS, node.OUT_POINTS)
    adaptive, static = residuals(node)
    return {
        "backbone": backbone,
        "features": {name: shapes[name].stride for name in node.IN_FEATURES},
        "neck": Neck(in_channels=[shapes[name].channels for name in node.IN_FEATURES], embed_dim=node.EMBED_DIM),
        "queries": Queries(num_queries=node.NUM_QUERIES, embed_dim=node.EMBED_DIM),
        "decoder": Decoder(
            size,
            num_stages=node.NUM_STAGES,
            num_heads=node.NUM_HEADS,
            feedforward_dim=node.FEEDFORWARD_DIM,
            num_classes=num_classes,
            adaptive=adaptive,
            static=static,
        ),
        "mixing_size": size,
        "criterion": AdaMixerCriterion(
            loss=Weights(node.CLASS_WEIGHT, node.BOX_WEIGHT, node.GIOU_WEIGHT),
            cost=Weights(node.COST_CLASS_WEIGHT, node.COST_BOX_WEIGHT, node.COST_GIOU_WEIGHT),
            finite_empty_batch=node.FIX.EMPTY_BATCH,
        ),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "frozen_stages": cfg.MODEL.BACKBONE.FREEZE_AT,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "peft": peft,
    }


def residuals(node: CfgNode) -> tuple[Optional[Residual], Optional[Residual]]:
    """The private parts of the kernels and of the output projection that MODEL.ADAMIXER asks for; None: no sharing.

    Raises:
        ConfigError: a number of groups for another number of stages, or a negative number.
    """
    lors, stages = node.LORS, node.NUM_STAGES
    for key in ("ADAPTIVE_RANK", "STATIC_RANK"):
        if lors[key] < 0:
            raise ConfigError(f"MODEL.ADAMIXER.LORS.{key} is {lors[key]}. Use 0 for no private part, or a rank above.")
    # The paper gives K for six stages alone; thirds of 1, 2 and 3 fit the parameters of its other depths.
    thirds = [1 + 3 * stage // stages for stage in range(stages)]
    adaptive = _groups("ADAPTIVE_GROUPS", lors.ADAPTIVE_GROUPS, LORS_ADAPTIVE_GROUPS, thirds)
    static = _groups("STATIC_GROUPS", lors.STATIC_GROUPS, LORS_STATIC_GROUPS, [1] * stages)
    return (
        Residual(lors.ADAPTIVE_RANK, adaptive) if lors.ENABLED and lors.ADAPTIVE else None,
        Residual(lors.STATIC_RANK, static) if lors.ENABLED and lors.STATIC else None,
    )


def _groups(key: str, value: Sequence[int], default: Sequence[int], by_rule: Sequence[int]) -> tuple[int, ...]:
    if len(value) != len(by_rule) and list(value) == list(default):
        return tuple(by_rule)
    if len(value) != len(by_rule) or not all(isinstance(k, int) and k >= 0 for k in value):
        raise ConfigError(
            f"MODEL.ADAMIXER.LORS.{key} is {list(value)}, but MODEL.ADAMIXER.NUM_STAGES is {len(by_rule)}. Give one "
            "number of groups, 0 or more, for every stage."
        )
    return tuple(value)


def _backbone(cfg: CfgNode) -> Backbone:
    """The backbone, nothing frozen: Detectron2 would also take the affine parts of frozen norms for constants."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_backbone(cfg)


def _check(node: CfgNode) -> None:
    sizes = "NUM_QUERIES", "NUM_STAGES", "NUM_HEADS", "FEEDFORWARD_DIM", "SAMPLING_GROUPS", "IN_POINTS", "OUT_POINTS"
    for key in sizes:
        if node[key] < 1:
            raise ConfigError(f"MODEL.ADAMIXER.{key} is {node[key]}. Use an integer of 1 or more.")
    if not node.IN_FEATURES:
        raise ConfigError("MODEL.ADAMIXER.IN_FEATURES is empty. Name the feature maps of the backbone, finest first.")
    for key, number in (("NUM_HEADS", node.NUM_HEADS), ("SAMPLING_GROUPS", node.SAMPLING_GROUPS)):
        if node.EMBED_DIM % number:
            raise ConfigError(
                f"MODEL.ADAMIXER.EMBED_DIM is {node.EMBED_DIM}, which {key} {number} cannot share evenly. Change one."
            )
    if node.EMBED_DIM % 32:
        raise ConfigError(
            f"MODEL.ADAMIXER.EMBED_DIM is {node.EMBED_DIM}, which the 32 groups of the neck's norm cannot share. "
            "Choose a multiple of 32."
        )
