"""What a Mask DINO config means: checks before anything is built, the delta file's say, the options of inference."""
from typing import Any, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.delta_file import with_delta
from lowrank_d2.modeling.maskdino.decoder import BOX_TYPES
from lowrank_d2.modeling.maskdino.fork import translate_fork
from lowrank_d2.modeling.maskdino.inference import InferenceOptions
from lowrank_d2.modeling.maskdino.pixel_decoder import FEATURE_ORDERS
from lowrank_d2.peft import PeftConfig

DENOISING = ("no", "standard", "seg")


def resolve(cfg: CfgNode) -> tuple[CfgNode, PeftConfig]:
    """The config with the fork's keys translated and, with MODEL.PEFT.DELTA, the classes of that file; and the methods.

    Raises:
        ConfigError: a value that no Mask DINO can be built from, or a delta without the base that it belongs to.
    """
    cfg, peft = with_delta(translate_fork(cfg))
    _check(cfg)
    return cfg, peft


def has_no_object_logit(cfg: CfgNode) -> bool:
    """Whether the class head has an output for "nothing"; as upstream also where the losses do not use it (Q11)."""
    node = cfg.MODEL.MaskDINO
    return node.SEMANTIC_CE_LOSS and node.TEST.SEMANTIC_ON and not (node.FIX.PANOPTIC_CE and node.TEST.PANOPTIC_ON)


def inference_options(cfg: CfgNode) -> InferenceOptions:
    """The tasks of MODEL.MaskDINO.TEST; with panoptic segmentation the things come from the training set's metadata."""
    node, test = cfg.MODEL.MaskDINO, cfg.MODEL.MaskDINO.TEST
    return InferenceOptions(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        instance=test.INSTANCE_ON,
        panoptic=test.PANOPTIC_ON,
        semantic=test.SEMANTIC_ON,
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        mask_quality=not test.TEST_FOUCUS_ON_BOX,
        object_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        temperature=test.PANO_TEMPERATURE if test.PANO_TRANSFORM_EVAL else None,
        softmax=has_no_object_logit(cfg) and not test.PANOPTIC_ON,
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.INSTANCE_ON or test.PANOPTIC_ON,
        thing_classes=thing_classes(cfg, "MODEL.MaskDINO.TEST.PANOPTIC_ON") if test.PANOPTIC_ON else None,
    )


def thing_classes(cfg: CfgNode, key: str) -> tuple[int, ...]:
    """The labels of things, by the metadata of the training set; `key` is the switch that asks for them.

    Raises:
        ConfigError: the metadata does not know them.
    """
    ids = None
    if cfg.DATASETS.TRAIN:
        ids = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_dataset_id_to_contiguous_id")
    if ids is None:
        raise ConfigError(
            f"{key} needs to know which classes are things, but DATASETS.TRAIN "
            f"{cfg.DATASETS.TRAIN} has no thing_dataset_id_to_contiguous_id in its metadata. Name a panoptic data set, "
            "or switch the task off."
        )
    return tuple(ids.values())


def _check(cfg: CfgNode) -> None:
    node, head = cfg.MODEL.MaskDINO, cfg.MODEL.SEM_SEG_HEAD
    _one_of("MODEL.MaskDINO.INITIALIZE_BOX_TYPE", node.INITIALIZE_BOX_TYPE, BOX_TYPES)
    _one_of("MODEL.MaskDINO.DN", node.DN, DENOISING)
    _one_of("MODEL.MaskDINO.TRANSFORMER_DECODER_NAME", node.TRANSFORMER_DECODER_NAME, ("MaskDINODecoder",))
    _one_of("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", head.PIXEL_DECODER_NAME, ("MaskDINOEncoder",))
    _one_of("MODEL.SEM_SEG_HEAD.FEATURE_ORDER", head.FEATURE_ORDER, FEATURE_ORDERS)
    if node.INITIALIZE_BOX_TYPE != "no" and not (node.TWO_STAGE and node.INITIAL_PRED):
        raise ConfigError(
            f"MODEL.MaskDINO.INITIALIZE_BOX_TYPE {node.INITIALIZE_BOX_TYPE!r} takes the first boxes from the masks of "
            "the selection, which needs TWO_STAGE True and INITIAL_PRED True. Set these, or INITIALIZE_BOX_TYPE 'no'."
        )
    for key, width in (("MaskDINO.HIDDEN_DIM", node.HIDDEN_DIM), ("SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM)):
        if width % 32:
            raise ConfigError(
                f"MODEL.{key} is {width}, which 8 heads and the 32 groups of the norms cannot share. Choose a multiple "
                "of 32."
            )
    levels, features = head.TOTAL_NUM_FEATURE_LEVELS, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    if levels < len(features) or not set(features) <= set(head.IN_FEATURES):
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES {list(features)} must be among IN_FEATURES "
            f"{list(head.IN_FEATURES)} and no more than TOTAL_NUM_FEATURE_LEVELS {levels}. Change one of the three."
        )


def _one_of(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}. Choose one of {', '.join(map(repr, choices))}.")
