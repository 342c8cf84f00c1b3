"""The configuration keys of AdaMixer and LORS. The number of classes of the data is MODEL.SEM_SEG_HEAD.NUM_CLASSES."""
from detectron2.config import CfgNode as CN

LORS_ADAPTIVE_GROUPS, LORS_STATIC_GROUPS = [1, 1, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1]


def add_config(cfg: CN) -> None:
    """Adds MODEL.ADAMIXER to `cfg`, in place; the defaults are AdaMixer's, with 4 x 32 sampling."""
    node = cfg.MODEL.ADAMIXER = CN()
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    node.EMBED_DIM = 256
    node.NUM_QUERIES = 100  # and at most so many detections of an image
    node.NUM_STAGES = 6
    node.NUM_HEADS = 8  # of the self-attention
    node.FEEDFORWARD_DIM = 2048
    node.SAMPLING_GROUPS = 4  # they share the EMBED_DIM channels; LORS has 2 of 64 points
    node.IN_POINTS = 32  # sampled by each query in each group
    node.OUT_POINTS = 128  # after the spatial mixing

    # Weights of the losses, which all stages have, and of the costs in the matching.
    node.CLASS_WEIGHT = 2.0
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.COST_CLASS_WEIGHT = 2.0
    node.COST_BOX_WEIGHT = 5.0
    node.COST_GIOU_WEIGHT = 2.0

    lors = node.LORS = CN()
    lors.ENABLED = False
    lors.ADAPTIVE = True  # of the kernel generators: shared by all stages, with private low-rank parts
    lors.STATIC = True  # of the mixing's output projection
    lors.ADAPTIVE_RANK = 16
    # Groups of low-rank factors of every stage, K in the paper. With other than 6 stages the defaults become: 1, 2 and
    # 3 for the three thirds of the stages; and 1.
    lors.ADAPTIVE_GROUPS = list(LORS_ADAPTIVE_GROUPS)
    lors.STATIC_RANK = 8
    lors.STATIC_GROUPS = list(LORS_STATIC_GROUPS)

    # Defects of the original that change numbers are followed; True mends one.
    fix = node.FIX = CN()
    fix.EMPTY_BATCH = False  # a batch without objects has a finite class loss
