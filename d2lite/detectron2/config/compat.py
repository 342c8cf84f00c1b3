"""Config files of older versions: keys that were renamed, and translation in both directions."""
import logging

from .config import CfgNode as CN

# _RENAMED[v]: (key of version v, key of version v + 1)
_RENAMED = (
    {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"},
    {
        "MODEL.WEIGHT": "MODEL.WEIGHTS",
        "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
        "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD":
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
        "TEST.AUG_ON": "TEST.AUG.ENABLED",
        "TEST.AUG_FLIP": "TEST.AUG.FLIP",
        "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
        "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    },
)


def upgrade_config(cfg: CN, to_version: int | None = None) -> CN:
    """A copy of ``cfg`` in the keys of a later version, by default the latest; unknown keys stay."""
    new = cfg.clone()
    frozen = new.is_frozen()
    new.defrost()
    for version in range(cfg.VERSION, len(_RENAMED) if to_version is None else to_version):
        if version == 1:
            _share_anchors(new)
        for old_key, new_key in _RENAMED[version].items():
            _rename(new, old_key, new_key)
        new.VERSION = version + 1
    if frozen:
        new.freeze()
    return new


def downgrade_config(cfg: CN, to_version: int) -> CN:
    """A copy of ``cfg`` in the keys of an earlier version, as a target to merge an old file into."""
    old = cfg.clone()
    frozen = old.is_frozen()
    old.defrost()
    for version in reversed(range(to_version, cfg.VERSION)):
        for old_key, new_key in _RENAMED[version].items():
            _rename(old, new_key, old_key)
        if version == 1:
            _give_each_its_anchors(old)
        old.VERSION = version
    if frozen:
        old.freeze()
    return old


def guess_version(cfg: CN, filename: str) -> int:
    """The version of a file that does not say: the oldest one that has all its tell-tale keys."""
    first_guess = 1 if any(_find(cfg, key) for key in ("MODEL.WEIGHT", "TEST.AUG_ON")) else len(_RENAMED)
    logging.getLogger(__name__).warning("%s does not say its VERSION; taking it for version %d.", filename, first_guess)
    return first_guess


_ANCHOR_KEYS = {"SIZES": "ANCHOR_SIZES", "ASPECT_RATIOS": "ANCHOR_ASPECT_RATIOS"}


def _give_each_its_anchors(cfg: CN) -> None:
    """Version 1 had anchors for RPN and for RetinaNet, instead of one generator used by whichever is built."""
    generator = cfg.MODEL.ANCHOR_GENERATOR
    for key, old_key in _ANCHOR_KEYS.items():
        for user in (cfg.MODEL.RPN, cfg.MODEL.RETINANET):
            user[old_key] = generator[key]
        del generator[key]
    cfg.MODEL.RETINANET.ANCHOR_STRIDES = []  # never had an effect


def _share_anchors(cfg: CN) -> None:
    """Keep the anchors of that user which the meta-architecture builds."""
    used, unused = cfg.MODEL.RPN, cfg.MODEL.RETINANET
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        used, unused = unused, used
    for key, old_key in _ANCHOR_KEYS.items():
        cfg.MODEL.ANCHOR_GENERATOR[key] = used.pop(old_key)
        del unused[old_key]
    del cfg.MODEL.RETINANET["ANCHOR_STRIDES"]


def _find(cfg: CN, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(cfg, CN) or part not in cfg:
            return False
        cfg = cfg[part]
    return True


def _rename(cfg: CN, old: str, new: str) -> None:
    """Move one value, removing groups that become empty; nothing happens where ``old`` does not exist."""
    if old == new or not _find(cfg, old):
        return
    *groups, leaf = old.split(".")
    path = [cfg]
    for group in groups:
        path.append(path[-1][group])
    value = path[-1].pop(leaf)
    for parent, group in zip(reversed(path[:-1]), reversed(groups)):
        if not parent[group]:
            del parent[group]

    *groups, leaf = new.split(".")
    node = cfg
    for group in groups:
        node = node.setdefault(group, CN())
    node[leaf] = value
