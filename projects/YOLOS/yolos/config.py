"""The configuration keys of YOLOS. The number of classes of the data is MODEL.SEM_SEG_HEAD.NUM_CLASSES."""
from detectron2.config import CfgNode as CN


def add_config(cfg: CN) -> None:
    """Adds MODEL.YOLOS to `cfg`, in place; the defaults are YOLOS-S as published."""
    node = cfg.MODEL.YOLOS = CN()
    node.EMBED_DIM = 384
    node.DEPTH = 12
    node.NUM_HEADS = 6
    node.MLP_DIM = 1536
    node.PATCH_SIZE = 16
    node.NUM_DET_TOKENS = 100
    # Image sizes (height, width) at which the position embeddings were trained; other sizes are interpolated.
    node.INITIAL_POSITION_SIZE = [512, 864]
    node.MID_POSITION_SIZE = [512, 864]  # of the ones added between the blocks; [] for a model without them
    node.LAYER_NORM_EPS = 1e-6  # of the original's files; transformers' say 1e-12 in their config.json
    # With 80 classes the logits stand at COCO's category ids (91, and "no object"), as in all published weights. Other
    # numbers of classes, and False, mean one logit a class.
    node.COCO_IDS = True

    # Loss: weights of its three terms, weight of "no object" in the classification, exponent of the focal factor.
    node.CLASS_WEIGHT = 1.0
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.NO_OBJECT_WEIGHT = 0.1
    node.FOCAL_GAMMA = 0.0  # 0 is the plain cross entropy
    # Weights of the costs in the Hungarian matching.
    node.COST_CLASS_WEIGHT = 1.0
    node.COST_BOX_WEIGHT = 5.0
    node.COST_GIOU_WEIGHT = 2.0

    # Post-processing. At most TEST.DETECTIONS_PER_IMAGE boxes of an image are kept.
    test = node.TEST = CN()
    test.SCORE_THRESHOLD = 0.0  # AP wants all boxes
    test.DUPLICATES = "keep"  # "keep", "nms" or "wbf" (weighted box fusion), both within a class
    test.DUPLICATES_IOU = 0.55  # boxes that overlap more are one object
    test.WBF_SCORE = "max"  # score of a fused box: "max", or "avg", which lowers it where an object was found twice
