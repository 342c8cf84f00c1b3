"""What a SEEM config means: checks before anything is built, then the parts of the model."""
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.delta_file import with_delta
from lowrank_d2.modeling.maskdino.configure import thing_classes
from lowrank_d2.modeling.matcher import HungarianMatcher
from lowrank_d2.modeling.set_criterion import SetCriterion
from seem import prompts
from seem.class_text import ClassText
from seem.decoder import SEEMDecoder
from seem.focalnet import FEATURES, FocalNet
from seem.inference import InferenceOptions
from seem.pixel_decoder import SEEMPixelDecoder
from seem.text_encoder import TextEncoder
from seem.tokenizer import Tokenizer


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of SEEM's constructor. With MODEL.PEFT.DELTA the methods are those of that file, and the classes too
    where nothing else names them.

    Raises:
        ConfigError: a value that no SEEM can be built from, classes that words cannot tell apart, no classes, or a
            delta without the base that it belongs to.
    """
    cfg, peft = with_delta(cfg)
    node, text = cfg.MODEL.SEEM, cfg.MODEL.SEEM.TEXT
    _check(node)
    names, inference = class_names(cfg), _inference(cfg)
    # Before the rest: to fill the table of all tokens with random numbers takes memory for a moment.
    words = ClassText(
        TextEncoder(
            vocabulary_size=text.VOCABULARY_SIZE,
            context_length=text.CONTEXT_LENGTH,
            width=text.WIDTH,
            num_heads=text.HEADS,
            num_layers=text.LAYERS,
            output_dim=text.EMBED_DIM,
        ),
        _tokens(cfg, names),
        cache=text.CACHE,
    )
    backbone = _backbone(node.FOCAL)
    return {
        "backbone": backbone,
        "pixel_decoder": SEEMPixelDecoder(
            input_shape=backbone.output_shape(),
            embed_dim=node.HIDDEN_DIM,
            mask_dim=node.MASK_DIM,
            norm=node.NORM,
            num_layers=node.ENC_LAYERS,
            num_heads=node.NHEADS,
            feedforward_dim=node.DIM_FEEDFORWARD,
        ),
        "decoder": SEEMDecoder(
            embed_dim=node.HIDDEN_DIM,
            mask_dim=node.MASK_DIM,
            text_dim=text.EMBED_DIM,
            num_heads=node.NHEADS,
            feedforward_dim=node.DIM_FEEDFORWARD,
            num_layers=node.DEC_LAYERS,
            num_queries=node.NUM_OBJECT_QUERIES,
        ),
        "text": words,
        "criterion": _criterion(node, len(names) or cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        "class_names": names,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": node.SIZE_DIVISIBILITY,
        "inference": inference,
        "freeze_text": text.FREEZE,
        "text_multiplier": node.TEXT_MULTIPLIER,
        "embeddings_multiplier": node.EMBEDDINGS_MULTIPLIER,
        "peft": peft,
    }


def class_names(cfg: CfgNode) -> list[str]:
    """The classes' names: MODEL.CLASS_NAMES or those of the data; [] if nothing has any."""
    if cfg.MODEL.CLASS_NAMES:
        return list(cfg.MODEL.CLASS_NAMES)
    for dataset in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        names = MetadataCatalog.get(dataset).get("thing_classes", [])
        if names:
            return list(names)
    return list(cfg.MODEL.SEEM.CLASS_PROMPTS)


def _tokens(cfg: CfgNode, names: list[str]) -> Optional[Tensor]:
    """(K + 1, T, L); None on the meta device, where a model is built for its sizes alone, without classes or vocabulary."""
    text = cfg.MODEL.SEEM.TEXT
    templates = prompts.read_templates(text.TEMPLATES)
    words = list(cfg.MODEL.SEEM.CLASS_PROMPTS) or names
    if len(words) != len(names):
        raise ConfigError(
            f"MODEL.SEEM.CLASS_PROMPTS has {len(words)} entries for {len(names)} classes ({', '.join(names)}). "
            "Give words for each of them, in this order."
        )
    prompts.check_distinct(words)
    for_sizes = cfg.MODEL.DEVICE == "meta"
    if not words:
        if for_sizes:
            return None
        raise ConfigError(
            "SEEM has no classes to look for: DATASETS.TRAIN names no data that know theirs. Name a data set, or write "
            "the words into MODEL.SEEM.CLASS_PROMPTS, or give --classes to tools/predict.py."
        )
    try:
        tokenizer = Tokenizer.load(text.VOCABULARY)
    except ConfigError:
        if for_sizes:
            return None
        raise
    return prompts.tokenize(words, templates, tokenizer, text.CONTEXT_LENGTH)


def _backbone(node: CfgNode) -> FocalNet:
    return FocalNet(
        embed_dim=node.EMBED_DIM,
        depths=node.DEPTHS,
        focal_levels=node.FOCAL_LEVELS,
        focal_windows=node.FOCAL_WINDOWS,
        mlp_ratio=node.MLP_RATIO,
        drop_path_rate=node.DROP_PATH_RATE,
        conv_embed=node.CONV_EMBED,
        depthwise=node.DEPTHWISE,
        patch_norm=node.PATCH_NORM,
        post_norm=node.POST_NORM,
        layer_scale=node.LAYER_SCALE,
        scale_modulator=node.SCALE_MODULATOR,
    )


def _criterion(node: CfgNode, num_classes: int) -> SetCriterion:
    return SetCriterion(
        num_classes=num_classes,
        matcher=HungarianMatcher(
            cost_class=node.COST_CLASS_WEIGHT,
            cost_mask=node.COST_MASK_WEIGHT,
            cost_dice=node.COST_DICE_WEIGHT,
            class_cost="softmax",
            num_points=node.TRAIN_NUM_POINTS,
        ),
        weights={"loss_ce": node.CLASS_WEIGHT, "loss_mask": node.MASK_WEIGHT, "loss_dice": node.DICE_WEIGHT},
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
        denoising="no",
        deep_supervision=node.DEEP_SUPERVISION,
        box_loss=False,
        class_loss="cross_entropy",
        no_object_weight=node.NO_OBJECT_WEIGHT,
    )


def _inference(cfg: CfgNode) -> InferenceOptions:
    test = cfg.MODEL.SEEM.TEST
    return InferenceOptions(
        instance=test.INSTANCE_ON,
        panoptic=test.PANOPTIC_ON,
        semantic=test.SEMANTIC_ON,
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        object_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.INSTANCE_ON or test.PANOPTIC_ON,
        thing_classes=thing_classes(cfg, "MODEL.SEEM.TEST.PANOPTIC_ON") if test.PANOPTIC_ON else None,
    )


def _check(node: CfgNode) -> None:
    for key in ("DEPTHS", "FOCAL_LEVELS", "FOCAL_WINDOWS"):
        values = node.FOCAL[key]
        if len(values) != len(FEATURES) or not all(isinstance(value, int) and value > 0 for value in values):
            raise ConfigError(f"MODEL.SEEM.FOCAL.{key} is {list(values)}. Give four whole numbers, one for each stage.")
    if not all(window % 2 for window in node.FOCAL.FOCAL_WINDOWS):
        raise ConfigError(
            f"MODEL.SEEM.FOCAL.FOCAL_WINDOWS is {list(node.FOCAL.FOCAL_WINDOWS)}. Windows around a pixel have odd sides."
        )
    for key in ("ENC_LAYERS", "DEC_LAYERS", "NHEADS", "DIM_FEEDFORWARD", "NUM_OBJECT_QUERIES", "TRAIN_NUM_POINTS"):
        if node[key] < 1:
            raise ConfigError(f"MODEL.SEEM.{key} is {node[key]}. Use an integer of 1 or more.")
    if node.HIDDEN_DIM % node.NHEADS or node.HIDDEN_DIM % 32:
        raise ConfigError(
            f"MODEL.SEEM.HIDDEN_DIM is {node.HIDDEN_DIM}, which {node.NHEADS} heads and the 32 groups of the norms must "
            "be able to share. Choose a multiple of both."
        )
    if node.TEXT.WIDTH % node.TEXT.HEADS:
        raise ConfigError(
            f"MODEL.SEEM.TEXT.WIDTH is {node.TEXT.WIDTH}, which {node.TEXT.HEADS} heads cannot share. Change one of them."
        )
    if node.SIZE_DIVISIBILITY % 32 or node.SIZE_DIVISIBILITY < 32:
        raise ConfigError(
            f"MODEL.SEEM.SIZE_DIVISIBILITY is {node.SIZE_DIVISIBILITY}. Use a multiple of 32, the largest stride."
        )
