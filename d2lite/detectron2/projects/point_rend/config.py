"""Configuration keys of PointRend."""
from detectron2.config import CfgNode

_POINT_HEAD = {
    "NAME": "StandardPointHead", "NUM_CLASSES": 80, "IN_FEATURES": ("p2",), "NUM_FC": 3, "FC_DIM": 256,
    "CLS_AGNOSTIC_MASK": False, "COARSE_PRED_EACH_LAYER": True, "COARSE_SEM_SEG_HEAD_NAME": "SemSegFPNHead",
    "TRAIN_NUM_POINTS": 14 * 14, "OVERSAMPLE_RATIO": 3, "IMPORTANCE_SAMPLE_RATIO": 0.75,
    "SUBDIVISION_STEPS": 5, "SUBDIVISION_NUM_POINTS": 28 * 28,
}


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add PointRend's keys with their defaults to ``cfg``, in place."""
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    mask_head = cfg.MODEL.ROI_MASK_HEAD
    mask_head.IN_FEATURES = ("p2",)
    mask_head.NUM_FC, mask_head.FC_DIM = 2, 1024
    mask_head.OUTPUT_SIDE_RESOLUTION = 7
    mask_head.POINT_HEAD_ON = False
    cfg.MODEL.POINT_HEAD = CfgNode(_POINT_HEAD)
    cfg.MODEL.IMPLICIT_POINTREND = CfgNode(
        {"IMAGE_FEATURE_ENABLED": True, "POS_ENC_ENABLED": True, "PARAMS_L2_REGULARIZER": 0.00001}
    )
