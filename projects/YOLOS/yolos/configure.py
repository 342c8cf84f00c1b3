"""What a YOLOS config means: checks before anything is built, then the parts of the model."""
from typing import Any, Optional, Sequence

from detectron2.config import CfgNode

from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.coco_labels import num_labels
from lowrank_d2.modeling.delta_file import with_delta
from lowrank_d2.modeling.matcher import HungarianMatcher
from yolos.criterion import YOLOSCriterion
from yolos.decode import DUPLICATES, WBF_SCORES, DecodeOptions
from yolos.positions import Grid, grid_of
from yolos.vit import DetectionViT


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of YOLOS's constructor. With MODEL.PEFT.DELTA the methods and classes are those of that file.

    Raises:
        ConfigError: a value that no YOLOS can be built from, or a delta without the base that it belongs to.
    """
    cfg, peft = with_delta(cfg)
    node, num_classes = cfg.MODEL.YOLOS, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    _check(node)
    return {
        "backbone": DetectionViT(
            embed_dim=node.EMBED_DIM,
            depth=node.DEPTH,
            num_heads=node.NUM_HEADS,
            mlp_dim=node.MLP_DIM,
            patch_size=node.PATCH_SIZE,
            num_det_tokens=node.NUM_DET_TOKENS,
            initial_grid=_grid("INITIAL_POSITION_SIZE", node.INITIAL_POSITION_SIZE, node.PATCH_SIZE),
            mid_grid=_grid("MID_POSITION_SIZE", node.MID_POSITION_SIZE, node.PATCH_SIZE),
            norm_eps=node.LAYER_NORM_EPS,
        ),
        "embed_dim": node.EMBED_DIM,
        "criterion": YOLOSCriterion(
            matcher=HungarianMatcher(
                cost_class=node.COST_CLASS_WEIGHT,
                cost_box=node.COST_BOX_WEIGHT,
                cost_giou=node.COST_GIOU_WEIGHT,
                class_cost="softmax",
                giou_eps=0.0,
            ),
            num_labels=num_labels(num_classes, node.COCO_IDS),
            class_weight=node.CLASS_WEIGHT,
            box_weight=node.BOX_WEIGHT,
            giou_weight=node.GIOU_WEIGHT,
            no_object_weight=node.NO_OBJECT_WEIGHT,
            focal_gamma=node.FOCAL_GAMMA,
        ),
        "num_classes": num_classes,
        "coco_ids": node.COCO_IDS,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "options": DecodeOptions(
            score_threshold=node.TEST.SCORE_THRESHOLD,
            duplicates=node.TEST.DUPLICATES,
            duplicates_iou=node.TEST.DUPLICATES_IOU,
            wbf_score=node.TEST.WBF_SCORE,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        ),
        "peft": peft,
    }


def _grid(key: str, size: Sequence[int], patch_size: int) -> Optional[Grid]:
    if key == "MID_POSITION_SIZE" and not size:
        return None
    if len(size) != 2 or not all(isinstance(side, int) and side >= patch_size for side in size):
        raise ConfigError(
            f"MODEL.YOLOS.{key} is {list(size)}; it must be [height, width] in pixels, each at least {patch_size}."
        )
    return grid_of(*size, patch_size)


def _check(node: CfgNode) -> None:
    if node.EMBED_DIM % node.NUM_HEADS:
        raise ConfigError(
            f"MODEL.YOLOS.EMBED_DIM is {node.EMBED_DIM}, which {node.NUM_HEADS} heads cannot share. Change EMBED_DIM "
            "or NUM_HEADS."
        )
    for key, allowed in (("DUPLICATES", DUPLICATES), ("WBF_SCORE", WBF_SCORES)):
        if node.TEST[key] not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ConfigError(f"MODEL.YOLOS.TEST.{key} is {node.TEST[key]!r}. Use one of {listed}.")
    for key in ("DEPTH", "NUM_DET_TOKENS", "MLP_DIM", "PATCH_SIZE"):
        if node[key] < 1:
            raise ConfigError(f"MODEL.YOLOS.{key} is {node[key]}. Use an integer of 1 or more.")
    if node.FOCAL_GAMMA < 0:
        raise ConfigError(f"MODEL.YOLOS.FOCAL_GAMMA is {node.FOCAL_GAMMA}. Use 0 for cross entropy, or a number above.")
