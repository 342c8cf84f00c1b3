"""Every configuration key and its default, as one mapping.

Grouped by who reads the keys: the run, the data, the solver, then the model from the image inwards.
"""
from .config import CfgNode as CN

_UNIT_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)

_RUN = {
    "VERSION": 2,  # of this tree of keys; compat.py translates older files
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # negative: a new one in every run
    "VIS_PERIOD": 0,  # iterations between pictures in TensorBoard; 0 draws none
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",  # of torch.set_float32_matmul_precision; "" leaves it alone
    "GLOBAL": {"HACK": 1.0},
}

_TEST = {
    "DETECTIONS_PER_IMAGE": 100, "EVAL_PERIOD": 0,
    "EXPECTED_RESULTS": [],  # [[task, metric, value, tolerance], ...]
    "KEYPOINT_OKS_SIGMAS": [],
    "AUG": {
        "ENABLED": False, "FLIP": True, "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200), "MAX_SIZE": 4000,
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

_INPUT = {
    "FORMAT": "BGR",
    "MASK_FORMAT": "polygon",  # or "bitmask"
    "RANDOM_FLIP": "horizontal",  # or "vertical", "none"
    "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
    "MIN_SIZE_TRAIN": (800,), "MAX_SIZE_TRAIN": 1333,
    "MIN_SIZE_TRAIN_SAMPLING": "choice",  # or "range": between the two sizes given
    "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333,  # 0 does not resize
}

_DATASETS = {
    "TRAIN": (), "TEST": (), "PROPOSAL_FILES_TRAIN": (), "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000, "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

_DATALOADER = {
    "NUM_WORKERS": 4, "SAMPLER_TRAIN": "TrainingSampler", "ASPECT_RATIO_GROUPING": True,
    "FILTER_EMPTY_ANNOTATIONS": True,
    "REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True,  # of RepeatFactorTrainingSampler
}

_SOLVER = {
    "IMS_PER_BATCH": 16,  # over all processes
    "REFERENCE_WORLD_SIZE": 0,  # positive: batch, rates and periods are meant for so many processes
    "MAX_ITER": 40000, "CHECKPOINT_PERIOD": 5000,
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "BASE_LR": 0.001, "BASE_LR_END": 0.0, "GAMMA": 0.1, "STEPS": (30000,),
    "NUM_DECAYS": 3, "RESCALE_INTERVAL": False,
    "WARMUP_METHOD": "linear", "WARMUP_ITERS": 1000, "WARMUP_FACTOR": 1.0 / 1000,
    "MOMENTUM": 0.9, "NESTEROV": False, "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0, "BIAS_LR_FACTOR": 1.0,
    "WEIGHT_DECAY_BIAS": None,  # None: as WEIGHT_DECAY
    "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0},
    "AMP": {"ENABLED": False},
}

_BACKBONES = {
    "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
    "RESNETS": {
        "DEPTH": 50, "OUT_FEATURES": ["res4"], "NORM": "FrozenBN", "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256,
        "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "RES5_DILATION": 1,
        "STRIDE_IN_1X1": True,  # where the original MSRA weights have it; torch's are trained with False
        "DEFORM_ON_PER_STAGE": [False, False, False, False], "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
    },
    "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"},
}

_PROPOSALS = {
    "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator", "SIZES": [[32, 64, 128, 256, 512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "ANGLES": [[-90, 0, 90]], "OFFSET": 0.0,
    },
    "RPN": {
        "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": ["res4"], "CONV_DIMS": [-1], "BOUNDARY_THRESH": -1,
        "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1], "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5,
        "LOSS_WEIGHT": 1.0, "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": _UNIT_BOX_WEIGHTS, "SMOOTH_L1_BETA": 0.0, "PRE_NMS_TOPK_TRAIN": 12000,
        "PRE_NMS_TOPK_TEST": 6000, "NMS_THRESH": 0.7, "POST_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TEST": 1000,
    },
}

_ROI_HEADS = {
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"], "IOU_THRESHOLDS": [0.5],
        "IOU_LABELS": [0, 1], "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25, "PROPOSAL_APPEND_GT": True,
        "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "", "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "NUM_CONV": 0,
        "CONV_DIM": 256, "NUM_FC": 0, "FC_DIM": 1024, "NORM": "", "CLS_AGNOSTIC_BBOX_REG": False,
        "TRAIN_ON_PRED_BOXES": False, "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "SMOOTH_L1_BETA": 0.0, "USE_SIGMOID_CE": False,
        "USE_FED_LOSS": False, "FED_LOSS_FREQ_WEIGHT_POWER": 0.5, "FED_LOSS_NUM_CLASSES": 50,
    },
    "ROI_BOX_CASCADE_HEAD": {
        "IOUS": (0.5, 0.6, 0.7),
        "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead", "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0, "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "CLS_AGNOSTIC_MASK": False,
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead", "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0, "CONV_DIMS": (512,) * 8, "NUM_KEYPOINTS": 17, "MIN_KEYPOINTS_PER_IMAGE": 1,
        "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True, "LOSS_WEIGHT": 1.0,
    },
}

_DENSE_HEADS = {
    "RETINANET": {
        "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], "NUM_CONVS": 4, "NORM": "",
        "PRIOR_PROB": 0.01, "IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1], "FOCAL_LOSS_ALPHA": 0.25,
        "FOCAL_LOSS_GAMMA": 2.0, "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_WEIGHTS": _UNIT_BOX_WEIGHTS,
        "SMOOTH_L1_LOSS_BETA": 0.1, "SCORE_THRESH_TEST": 0.05, "TOPK_CANDIDATES_TEST": 1000, "NMS_THRESH_TEST": 0.5,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead", "NUM_CLASSES": 54, "IGNORE_VALUE": 255, "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "COMMON_STRIDE": 4, "CONVS_DIM": 128, "NORM": "GN", "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {
            "ENABLED": True, "INSTANCES_CONFIDENCE_THRESH": 0.5, "OVERLAP_THRESH": 0.5,
            "STUFF_AREA_LIMIT": 4096,  # pixels
        },
    },
}

_MODEL = {
    "META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "", "DEVICE": "cuda",
    "PIXEL_MEAN": [103.53, 116.28, 123.675],  # channels as in INPUT.FORMAT
    "PIXEL_STD": [1.0, 1.0, 1.0],
    "MASK_ON": False, "KEYPOINT_ON": False, "LOAD_PROPOSALS": False,
    **_BACKBONES, **_PROPOSALS, **_ROI_HEADS, **_DENSE_HEADS,
}

_C = CN(
    {
        **_RUN, "INPUT": _INPUT, "DATASETS": _DATASETS, "DATALOADER": _DATALOADER, "SOLVER": _SOLVER, "TEST": _TEST,
        "MODEL": _MODEL,
    }
)
