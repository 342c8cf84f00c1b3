"""The configuration keys of SEEM. The number of classes of the data is MODEL.SEM_SEG_HEAD.NUM_CLASSES."""
from detectron2.config import CfgNode as CN


def add_config(cfg: CN) -> None:
    """Adds MODEL.SEEM to `cfg`, in place; the defaults are SEEM with a FocalNet-L as published."""
    node = cfg.MODEL.SEEM = CN()
    # Words for the classes, in their order, where the data's names say little; [] takes the data's names.
    node.CLASS_PROMPTS = []

    focal = node.FOCAL = CN()
    focal.EMBED_DIM = 192
    focal.DEPTHS = [2, 2, 18, 2]
    focal.FOCAL_LEVELS = [4, 4, 4, 4]  # surroundings that a block looks at, per stage
    focal.FOCAL_WINDOWS = [3, 3, 3, 3]  # side of the narrowest one; the next are wider by 2 each
    focal.MLP_RATIO = 4.0
    focal.DROP_PATH_RATE = 0.3  # of the last block, in training; a frozen backbone drops nothing
    focal.CONV_EMBED = True  # overlapping convolutions for patches and between stages
    focal.DEPTHWISE = False  # the blocks of the published Tiny, which the original calls focal_dw
    focal.PATCH_NORM = True
    focal.POST_NORM = True
    focal.LAYER_SCALE = True
    focal.SCALE_MODULATOR = True

    node.HIDDEN_DIM = 512  # of pixel decoder and decoder
    node.MASK_DIM = 512
    node.NORM = "GN"  # of the feature pyramid
    node.ENC_LAYERS = 6  # of the pixel decoder's transformer encoder
    node.DEC_LAYERS = 9
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.NUM_OBJECT_QUERIES = 101
    node.SIZE_DIVISIBILITY = 32  # the canvas of a batch is a multiple of this

    text = node.TEXT = CN()
    text.WIDTH = 512
    text.HEADS = 8
    text.LAYERS = 12
    text.CONTEXT_LENGTH = 77  # tokens of a text, start and end among them
    text.VOCABULARY_SIZE = 49408
    text.EMBED_DIM = 512  # in which queries and words are compared
    # CLIP's bpe_simple_vocab_16e6.txt.gz; "" finds it in an installed package that carries it (open_clip_torch).
    text.VOCABULARY = ""
    text.TEMPLATES = "imagenet"  # the sentences around a class: a set of seem/templates
    text.CACHE = True  # keep the embeddings while the encoder is frozen, and the encoder out of memory
    text.FREEZE = False  # the text encoder and the scale of the similarities do not train, whatever MODEL.PEFT.TRAIN says

    # Loss weights, of the final and all earlier predictions.
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    # Weights of the same terms in the Hungarian matching.
    node.COST_CLASS_WEIGHT = 2.0
    node.COST_MASK_WEIGHT = 5.0
    node.COST_DICE_WEIGHT = 5.0
    node.NO_OBJECT_WEIGHT = 0.1  # of "background" in the classification
    node.DEEP_SUPERVISION = True  # losses on the earlier predictions too
    # Points at which masks are compared, in matching and loss.
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0  # candidates per point of the loss
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # share taken where the mask is least certain

    # Learning rates relative to SOLVER.BASE_LR: of the text encoder, and beside adapters or low-rank updates of the
    # class and mask heads, as in the authors' scripts. That of the backbone is SOLVER.BACKBONE_MULTIPLIER.
    node.TEXT_MULTIPLIER = 0.1
    node.EMBEDDINGS_MULTIPLIER = 0.1

    test = node.TEST = CN()
    test.INSTANCE_ON = True
    test.SEMANTIC_ON = False
    test.PANOPTIC_ON = False
    test.OBJECT_MASK_THRESHOLD = 0.8  # least score of a panoptic segment
    test.OVERLAP_THRESHOLD = 0.8  # least share of its mask that a panoptic segment keeps
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False  # resize masks, not semantic scores; so with the other tasks
