"""The configuration keys of both models; those of the branches are in MODEL.LORA_DETR (lowrank_d2/config.py).

The number of classes of the data is MODEL.SEM_SEG_HEAD.NUM_CLASSES.
"""
from detectron2.config import CfgNode as CN


def add_config(cfg: CN) -> None:
    """Adds MODEL.DEFORMABLE_DETR and MODEL.RELATION_DETR to `cfg`, in place; the defaults are the published models."""
    node = cfg.MODEL.DEFORMABLE_DETR = _common()
    node.NUM_QUERIES = 300
    node.DROPOUT = 0.1
    node.CLASS_WEIGHT = 2.0
    node.BRANCH.CLASS_WEIGHT = 2.0
    node.ENCODER.CLASS_WEIGHT = 2.0
    node.TWO_STAGE = True  # queries from the encoder's best tokens instead of learned ones
    node.MIXED_SELECTION = False  # two-stage: the queries' content is learned, their boxes come from the tokens
    node.LOOK_FORWARD_TWICE = False  # a layer's boxes send their gradient to the layer before, too
    node.CROSS_FIRST = False  # MS-DETR: cross-attention before self-attention, branches between them
    node.CLASS_LOSS = "focal"  # "focal" (alpha 0.25, gamma 2) or "quality" (soft targets, gamma 1.5)

    node = cfg.MODEL.RELATION_DETR = _common()
    node.NUM_QUERIES = 900
    node.DROPOUT = 0.0
    node.CLASS_WEIGHT = 1.0
    node.BRANCH.CLASS_WEIGHT = 1.0
    node.ENCODER.CLASS_WEIGHT = 1.0
    node.ENCODER.MATCH_ANCHORS = False  # True: losses over all tokens, matched by their anchors (the branches' variant)
    node.EXTRA = CN()  # weights of the losses of denoising and hybrid queries
    node.EXTRA.CLASS_WEIGHT = 1.0
    node.EXTRA.BOX_WEIGHT = 5.0
    node.EXTRA.GIOU_WEIGHT = 2.0
    node.HYBRID = CN()  # more queries in training, for objects that are repeated
    node.HYBRID.NUM_QUERIES = 1500
    node.HYBRID.REPEATS = 6
    node.DENOISING = CN()
    node.DENOISING.NUM_QUERIES = 100  # of objects, about; as many queries again are noised too much, as negatives
    node.DENOISING.LABEL_NOISE = 0.5  # half of this share of the labels is replaced
    node.DENOISING.BOX_NOISE = 1.0  # sides move by up to this share of half the box, of negatives by up to twice it


def _common() -> CN:
    node = CN()
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 4  # those beyond IN_FEATURES are made by strided convolutions
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.NUM_POINTS = 4
    node.ENC_LAYERS = 6
    node.DEC_LAYERS = 6
    node.DIM_FEEDFORWARD = 2048
    # With 80 classes the logits stand at COCO's category ids (91), as in all published weights. Other numbers of
    # classes, and False, mean one logit a class.
    node.COCO_IDS = True
    # Weights of the losses of every decoder layer; with branches the published runs lower CLASS_WEIGHT.
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    # Weights of the costs in the Hungarian matching.
    node.COST_CLASS_WEIGHT = 2.0
    node.COST_BOX_WEIGHT = 5.0
    node.COST_GIOU_WEIGHT = 2.0
    # Parts of the model, found by name, that learn at SLOW_FACTOR of the learning rate.
    node.SLOW_PARTS = ["sampling_offsets", "reference_points"]
    node.SLOW_FACTOR = 0.1
    for part in ("BRANCH", "ENCODER"):  # the branches' losses are also multiplied by LORA_DETR.LOSS_WEIGHT / branches
        node[part] = CN()
        node[part].BOX_WEIGHT = 5.0
        node[part].GIOU_WEIGHT = 2.0
    return node
