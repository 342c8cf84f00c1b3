"""Every configuration key that lowrank_d2 adds to Detectron2's, its default and its meaning."""
from typing import Any, List

from detectron2.config import CfgNode as CN


class GenerousCfgNode(CN):
    """The root of a configuration that takes an int where the default is a float.

    yacs compares types exactly and has no place to say otherwise; the sections below stay Detectron2's own nodes.
    """

    # Sections are made and compared as Detectron2's own nodes.
    @classmethod
    def _create_config_tree_from_dict(cls, dic: Any, key_list: List[str]) -> Any:
        return CN._create_config_tree_from_dict(dic, key_list)

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        return CN._decode_cfg_value(value)

    def merge_from_other_cfg(self, cfg_other: CN) -> Any:
        return super().merge_from_other_cfg(_with_floats(cfg_other, self))

    def merge_from_list(self, cfg_list: List) -> Any:
        pairs = list(cfg_list)
        for i in range(0, len(pairs) - 1, 2):
            value = self._decode_cfg_value(pairs[i + 1])
            if type(value) is int and isinstance(_leaf(self, pairs[i]), float):
                pairs[i + 1] = float(value)
        return super().merge_from_list(pairs)


def _with_floats(values: CN, defaults: Any) -> CN:
    """A copy of `values` in plain nodes, its ints made floats where `defaults` has a float."""
    copy = CN()
    for name, value in values.items():
        default = defaults.get(name) if isinstance(defaults, CN) else None
        if isinstance(value, CN):
            copy[name] = _with_floats(value, default)
        else:
            copy[name] = float(value) if type(value) is int and isinstance(default, float) else value
    return copy


def _leaf(node: Any, key: str) -> Any:
    for name in str(key).split("."):
        node = node.get(name) if isinstance(node, CN) else None
    return node


def add_lowrank_config(cfg: CN) -> None:
    """Adds all keys below to `cfg`, in place: Mask DINO's own under their published names and defaults, then ours.

    From then on `cfg.merge_from_file` and `cfg.merge_from_list` take an int where the default is a float.
    """
    if type(cfg) is CN:
        object.__setattr__(cfg, "__class__", GenerousCfgNode)  # CfgNode's own __setattr__ would make it a key
    _add_mask_dino(cfg)
    _add_swin(cfg)
    _add_input(cfg)
    _add_training(cfg)
    _add_peft(cfg)
    _add_branches(cfg)
    _add_fork(cfg)


def _add_mask_dino(cfg: CN) -> None:
    # Full dumps of real runs contain DeepLab's keys; of these only the polynomial learning rate acts.
    from detectron2.projects.deeplab import add_deeplab_config

    add_deeplab_config(cfg)

    node = cfg.MODEL.MaskDINO = CN()
    # Loss weights; the same for the final, the auxiliary, the two-stage and the denoising predictions.
    node.CLASS_WEIGHT = 4.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.BOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    # Weights of the same five terms in the Hungarian matching.
    node.COST_CLASS_WEIGHT = 4.0
    node.COST_MASK_WEIGHT = 5.0
    node.COST_DICE_WEIGHT = 5.0
    node.COST_BOX_WEIGHT = 5.0
    node.COST_GIOU_WEIGHT = 2.0
    node.DEEP_SUPERVISION = True  # losses on every decoder layer
    node.BOX_LOSS = True  # box losses on matched predictions (the denoising part keeps its own)
    node.PANO_BOX_LOSS = False  # box losses on things alone; "thing" is label < 80, as upstream
    node.SEMANTIC_CE_LOSS = False  # softmax cross entropy with a no-object class, for semantic segmentation
    node.NO_OBJECT_WEIGHT = 0.1  # weight of that class
    # Points at which masks are compared, in matching and loss.
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0  # candidates per point of the loss
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # share taken where the mask is least certain
    # Decoder.
    node.HIDDEN_DIM = 256
    node.DIM_FEEDFORWARD = 2048  # the decoder's; the encoder's is SEM_SEG_HEAD.DIM_FEEDFORWARD
    node.DEC_LAYERS = 6
    node.NUM_OBJECT_QUERIES = 100
    node.TWO_STAGE = True  # queries from the encoder's best tokens instead of learned ones
    node.LEARN_TGT = False  # two-stage: learned query content
    node.INITIAL_PRED = True  # predict (and supervise) before the first layer
    node.INITIALIZE_BOX_TYPE = "no"  # "no", "mask2box", "bitmask": first boxes from the first masks
    node.ENFORCE_INPUT_PROJ = False
    node.DN = "seg"  # denoising queries: "no", "standard" (class and box), "seg" (masks too)
    node.DN_NUM = 100  # denoising queries of an image, about
    node.DN_NOISE_SCALE = 0.4
    # Encoder of the pixel decoder alone, as upstream; the decoder has 8 heads and no dropout.
    node.NHEADS = 8
    node.DROPOUT = 0.1
    node.SIZE_DIVISIBILITY = 32  # the canvas is a multiple of this; below 0: the backbone's
    node.TRANSFORMER_DECODER_NAME = "MaskDINODecoder"
    # Accepted and without effect, as upstream.
    node.ENC_LAYERS = 0
    node.PRE_NORM = False
    node.PRED_CONV = False
    node.EVAL_FLAG = 1
    cfg.Default_loading = True

    test = node.TEST = CN()
    test.SEMANTIC_ON = True
    test.INSTANCE_ON = False
    test.PANOPTIC_ON = False
    test.TEST_FOUCUS_ON_BOX = False  # instance scores without the mask quality (upstream's spelling)
    test.OBJECT_MASK_THRESHOLD = 0.0
    test.OVERLAP_THRESHOLD = 0.0
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    test.PANO_TRANSFORM_EVAL = True
    test.PANO_TEMPERATURE = 0.06

    # Defects of the original that change numbers are followed; each True here mends one (facts, quirks Q1 to Q15).
    fix = node.FIX = CN()
    fix.PADDING_MASK = False  # padding is neither attended to, nor proposed, nor counted in position encodings
    fix.BOX_CANVAS = False  # training boxes as fractions of the padded canvas, as inference reads them
    fix.EXTRA_LEVEL_ENCODING = False  # with two or more extra levels: each map gets its own position encoding
    fix.PANOPTIC_CE = False  # SEMANTIC_CE_LOSS with PANOPTIC_ON: no unused extra class output
    fix.PANO_THINGS = False  # PANO_BOX_LOSS: things by the dataset's metadata instead of label < 80

    head = cfg.MODEL.SEM_SEG_HEAD
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DIM_FEEDFORWARD = 1024
    head.TRANSFORMER_ENC_LAYERS = 0
    head.TOTAL_NUM_FEATURE_LEVELS = 4
    head.FEATURE_ORDER = "high2low"  # "low2high" or "high2low": order of the levels in the encoder
    head.MASK_DIM = 256
    head.PIXEL_DECODER_NAME = "MaskDINOEncoder"
    # Accepted and without effect, as upstream (4 points, MaskDINO.NHEADS heads, TOTAL_NUM_FEATURE_LEVELS levels).
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.NUM_FEATURE_LEVELS = 3


def _add_swin(cfg: CN) -> None:
    node = cfg.MODEL.SWIN = CN()
    node.PRETRAIN_IMG_SIZE = 224
    node.PATCH_SIZE = 4
    node.EMBED_DIM = 96
    node.DEPTHS = [2, 2, 6, 2]
    node.NUM_HEADS = [3, 6, 12, 24]
    node.WINDOW_SIZE = 7
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    node.QK_SCALE = None
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    node.DROP_PATH_RATE = 0.3
    node.APE = False
    node.PATCH_NORM = True
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    node.USE_CHECKPOINT = False


def _add_input(cfg: CN) -> None:
    node = cfg.INPUT
    # Training augmentation: "lowrank_instance" (scale jitter that keeps the aspect ratio, then a crop of fixed size),
    # "coco_instance_lsj", "coco_instance_detr" as upstream; upstream's default below means Detectron2's own augmentation.
    node.DATASET_MAPPER_NAME = "MaskDINO_semantic"
    node.IMAGE_SIZE = 1024  # side of the training canvas of the large-scale-jitter mappers
    node.CANVAS = []  # (height, width) of the canvas of "lowrank_instance"; []: IMAGE_SIZE squared
    # Where images keep their own shape, both sides are rounded down to a multiple of this: the patches of YOLOS have 16 pixels.
    node.SIZE_MULTIPLE = 1
    node.MIN_SCALE = 0.1  # scale jitter; at 1 the image just fits into the canvas
    node.MAX_SCALE = 2.0
    node.EXIF = "apply"  # "apply" turns images upright as their EXIF tag says, "ignore" takes the pixels as stored
    node.MAX_PIXELS = 178956970  # larger images are refused from their header, never decoded
    # Accepted and without effect on instances, as upstream.
    node.COLOR_AUG_SSD = False
    node.SIZE_DIVISIBILITY = -1


def _add_training(cfg: CN) -> None:
    node = cfg.SOLVER
    node.OPTIMIZER = "ADAMW"  # or "SGD"
    node.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone relative to BASE_LR
    node.WEIGHT_DECAY_EMBED = 0.0
    node.BETAS = [0.9, 0.999]  # of AdamW, as EPS
    node.EPS = 1e-8
    # LR_SCHEDULER_NAME may also be one of torch's that move once an epoch, which is TEST.EVAL_PERIOD iterations:
    # "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ReduceLROnPlateau" (by AP). Times are in epochs.
    node.COSINE = CN({"T_MAX": 10})  # down to zero, then up again
    node.RESTARTS = CN({"T_0": 2, "T_MULT": 2})  # length of the first descent, and of each compared with the one before
    node.PLATEAU = CN({"FACTOR": 0.5, "PATIENCE": 2})  # the rate falls after more than PATIENCE evaluations without a gain
    node.ACCUMULATE = 1  # batches of IMS_PER_BATCH whose gradients are averaged into one step
    node.AMP.DTYPE = "float16"  # "float16" or "bfloat16"; acts with AMP.ENABLED

    # Names of the classes, in the order of the outputs, for a model that reads them. [] takes those of the delta, of the run
    # that wrote the weights, or of the data; training takes its data's.
    cfg.MODEL.CLASS_NAMES = []
    cfg.MODEL.WEIGHTS_SHA256 = ""  # of the file MODEL.WEIGHTS, in hexadecimal; "" does not check it

    cfg.DATALOADER.TIMEOUT = 600  # seconds without a batch from the workers after which a run stops; 0: wait for ever

    test = cfg.TEST
    test.VALIDATION_LOSS = False  # compute the training losses on DATASETS.TEST at every EVAL_PERIOD
    test.EARLY_STOP = CN()
    test.EARLY_STOP.PATIENCE = 0  # evaluations without a gain of MIN_DELTA after which training stops; 0: never
    test.EARLY_STOP.MIN_DELTA = 0.0  # AP points


def _add_peft(cfg: CN) -> None:
    node = cfg.MODEL.PEFT = CN()
    node.METHODS = []  # of "lora", "dora", "adalora", "loha", "lokr", "adapter"; [] leaves the model untouched
    node.TRAIN = "all"  # which base parameters train: "all", "full_head", "decoder", "embeddings", "none"
    node.TRAIN_LABEL_EMBEDDING = True  # with "embeddings" and "none": the denoising label embedding trains too
    node.DELTA = ""  # a delta file, applied after MODEL.WEIGHTS; methods and classes come from it
    node.DELTA_DTYPE = "float32"  # of the deltas that a run writes: "float32", or "float16" for files of half the size

    node.LORA = _low_rank(rank=8)
    node.LORA.DROPOUT = 0.0  # on the input of A
    node.LORA.RSLORA = False  # scale by ALPHA / sqrt(RANK)

    node.DORA = node.LORA.clone()  # LoRA's keys; the rows' lengths train beside their directions

    ada = node.ADALORA = _low_rank(rank=12)  # RANK is the one that training starts with
    ada.DROPOUT = 0.0
    ada.TARGET_RANK = 8  # what is left of it in the end, on average over all targets
    ada.TINIT = 0.1  # optimizer steps before the first pruning; below 1: a share of all steps
    ada.TFINAL = 0.3  # optimizer steps after the last pruning; below 1: a share of all steps
    ada.DELTA_T = 1  # optimizer steps from one pruning to the next
    ada.BETA1 = 0.85  # of the moving average of importance
    ada.BETA2 = 0.85  # of the moving average of its uncertainty
    ada.ORTHOGONALITY = 0.5  # weight of the orthogonality loss
    ada.TOTAL_STEPS = None  # optimizer steps that the schedule spans; None: SOLVER.MAX_ITER

    loha = node.LOHA = _low_rank(rank=8)
    loha.RANK_DROPOUT = 0.0  # on outputs of the update, rescaled
    loha.MODULE_DROPOUT = 0.0  # on whole updates, not rescaled
    loha.EFFECTIVE_CONV2D = False  # factors of a convolution's channels with a core for the kernel

    lokr = node.LOKR = loha.clone()
    lokr.FACTOR = -1  # first sizes of the two Kronecker factors; -1: as near to the root as divisors allow
    lokr.DECOMPOSE_BOTH = False  # low rank in both factors
    lokr.RANK_DROPOUT_SCALE = False  # rescale after rank dropout

    adapter = node.ADAPTER = CN()
    adapter.REPEATS = 1  # adapters in a row at every place
    adapter.REDUCTION = 4  # bottleneck = hidden // REDUCTION
    adapter.RESIDUAL = "kappa+lambda"  # "kappa" (residual stream), "lambda" (attention output) or their sum
    # "bert": normal(0, 0.02), with "lambda" the second matrix 0; "xavier": how the authors' code really starts
    adapter.INIT = "bert"


def _low_rank(rank: int) -> CN:
    """The keys that all low-rank methods share."""
    node = CN()
    node.RANK = rank
    node.ALPHA = None  # the update is scaled by ALPHA / RANK; None: ALPHA = RANK
    node.TARGETS = []  # "value_proj", "0.value_proj", "re:full.*match", "qkv[q,v]" (rows); [] = the model's own choice
    node.RANK_PATTERN = []  # [["0.value_proj", 16], ...]: another rank for the targets so named
    node.ALPHA_PATTERN = []  # the same for alpha
    return node


def _add_branches(cfg: CN) -> None:
    """Further, one-to-many supervised outputs of every decoder layer, in training only (LoRA-DETR)."""
    node = cfg.MODEL.LORA_DETR = CN()
    node.K = None  # for every branch, the most queries that an object takes: [2, 4, 6]; None: no branches
    node.KIND = "lora"  # "lora": low-rank updates of the feed-forward part, "ffn": feed-forward parts of their own
    node.RANK = 32  # of the updates
    node.INIT = "zero"  # "zero": branches start as copies of the primary one, "xavier": they differ, as in the released code
    node.RULE = "released"  # assignment as the "released" code does it, or as the "paper" words it
    node.ALPHA = 0.3  # weight of the class probability in an assignment's score; the rest is IoU
    node.ALPHAS = []  # one ALPHA a branch; [] = the same for all
    node.TAU = 0.4  # least score of a positive query
    node.TAUS = []  # one TAU a branch; [] = the same for all
    node.CAP = 0.25  # of all queries, this share may be positive; more are left out at random ("released")
    node.MERGE_INDICES = False  # queries that are free take their one-to-one pair
    node.LOSS_WEIGHT = 1.0  # factor of all branches' losses, beside 1 / branches


def _add_fork(cfg: CN) -> None:
    """Keys of the paper authors' fork, so that its dumps load; MaskDINO.from_config translates them to MODEL.PEFT."""
    cfg.USE_ADAPTERS = False
    cfg.ADAPTER_NUM = 1
    cfg.ADAPTER_REDUCTION = 4
    cfg.USE_LORA = False  # True is refused: its LoRA is another function
    cfg.LORA_RANK = 8
    cfg.LORA_ALPHA = 1
    cfg.LORA_DEFORMABLE_TARGETS = []
    cfg.LORA_TARGETS = []
    cfg.SOLVER.IGNORE_FIX = []
