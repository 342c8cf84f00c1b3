"""Configuration keys of DeepLab, which other segmentation projects build upon."""
from detectron2.config import CfgNode

_KEYS = {
    "INPUT": {"CROP": {"SINGLE_CATEGORY_MAX_AREA": 1.0}},  # of a crop; 1 allows any
    "SOLVER": {"POLY_LR_POWER": 0.9, "POLY_LR_CONSTANT_ENDING": 0.0},
    "MODEL": {
        "RESNETS": {"STEM_TYPE": "deeplab", "RES4_DILATION": 1, "RES5_MULTI_GRID": [1, 2, 4]},
        "SEM_SEG_HEAD": {
            "LOSS_TYPE": "hard_pixel_mining",  # or "cross_entropy"
            "PROJECT_FEATURES": ["res2"], "PROJECT_CHANNELS": [48], "USE_DEPTHWISE_SEPARABLE_CONV": False,
            "ASPP_CHANNELS": 256, "ASPP_DILATIONS": [6, 12, 18], "ASPP_DROPOUT": 0.1,
        },
    },
}


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add DeepLab's keys with their defaults to ``cfg``, in place."""
    _add(cfg, CfgNode(_KEYS))


def _add(node: CfgNode, new: CfgNode) -> None:
    for key, value in new.items():
        if isinstance(value, CfgNode) and key in node:
            _add(node[key], value)
        else:
            node[key] = value
