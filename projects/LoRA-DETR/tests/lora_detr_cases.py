"""The golden cases of LoRA-DETR: their configurations in our keys, their models, and what a forward pass computes."""
import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances

from lora_detr import add_config
from lowrank_d2.config import add_lowrank_config
from tests.golden.conftest import ROOT

FAMILY = "lora_detr"
STRIDES = {"res3": 8, "res4": 16, "res5": 32}
# Flags of the original's command line -> our keys below MODEL, and what the value means.
VALUES = {
    "--dim_feedforward": ("DEFORMABLE_DETR.DIM_FEEDFORWARD", int),
    "--hidden_dim": ("DEFORMABLE_DETR.HIDDEN_DIM", int),
    "--nheads": ("DEFORMABLE_DETR.NHEADS", int),
    "--enc_layers": ("DEFORMABLE_DETR.ENC_LAYERS", int),
    "--dec_layers": ("DEFORMABLE_DETR.DEC_LAYERS", int),
    "--num_feature_levels": ("DEFORMABLE_DETR.NUM_LEVELS", int),
    "--dropout": ("DEFORMABLE_DETR.DROPOUT", float),
    "--num_queries": ("DEFORMABLE_DETR.NUM_QUERIES", int),
    "--cls_loss_coef": ("DEFORMABLE_DETR.CLASS_WEIGHT", float),
    "--bbox_loss_coef": ("DEFORMABLE_DETR.BOX_WEIGHT", float),
    "--giou_loss_coef": ("DEFORMABLE_DETR.GIOU_WEIGHT", float),
    "--o2m_cls_loss_coef": ("DEFORMABLE_DETR.BRANCH.CLASS_WEIGHT", float),
    "--o2m_bbox_loss_coef": ("DEFORMABLE_DETR.BRANCH.BOX_WEIGHT", float),
    "--o2m_giou_loss_coef": ("DEFORMABLE_DETR.BRANCH.GIOU_WEIGHT", float),
    "--enc_cls_loss_coef": ("DEFORMABLE_DETR.ENCODER.CLASS_WEIGHT", float),
    "--enc_bbox_loss_coef": ("DEFORMABLE_DETR.ENCODER.BOX_WEIGHT", float),
    "--enc_giou_loss_coef": ("DEFORMABLE_DETR.ENCODER.GIOU_WEIGHT", float),
    "--set_cost_class": ("DEFORMABLE_DETR.COST_CLASS_WEIGHT", float),
    "--set_cost_bbox": ("DEFORMABLE_DETR.COST_BOX_WEIGHT", float),
    "--set_cost_giou": ("DEFORMABLE_DETR.COST_GIOU_WEIGHT", float),
    "--r_lora": ("LORA_DETR.RANK", int),
}
SWITCHES = {
    "--two_stage": ("DEFORMABLE_DETR.TWO_STAGE", True),
    "--mixed_selection": ("DEFORMABLE_DETR.MIXED_SELECTION", True),
    "--look_forward_twice": ("DEFORMABLE_DETR.LOOK_FORWARD_TWICE", True),
    "--use_indices_merge": ("LORA_DETR.MERGE_INDICES", True),
    "--w_mfl_2": ("DEFORMABLE_DETR.CLASS_LOSS", "quality"),
    "--m_naive": ("LORA_DETR.KIND", "ffn"),
}
# Of the branches' assignment; one value, or one a branch, on the command line or beside it in the file.
PER_BRANCH = {
    "ALPHA": ("--alpha", "--o2m_alpha", "--o2m_matcher_alpha"),
    "TAU": ("--tau", "--o2m_tau", "--o2m_matcher_threshold"),
}


@BACKBONE_REGISTRY.register()
class GoldenFeatures(Backbone):
    """Gives the maps that a golden case brings, whatever the image."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.channels = dict(zip(STRIDES, cfg.MODEL.FPN.IN_FEATURES))
        self.features: dict[str, torch.Tensor] = {}

    def forward(self, images):
        return self.features

    def output_shape(self):
        return {name: ShapeSpec(channels=c, stride=STRIDES[name]) for name, c in self.channels.items()}


def parameters(mode: str) -> list:
    """The cases of a mode, as parameters; one that is skipped when there are none."""
    files = sorted((ROOT / FAMILY).rglob("case.json"))
    found = [file.parent for file in files if json.loads(file.read_text(encoding="utf-8"))["mode"] == mode]
    if not found:
        skip = pytest.mark.skip(reason=f"no golden cases of LoRA-DETR below {ROOT}; set LOWRANK_D2_GOLDEN")
        return [pytest.param(None, marks=skip, id="absent")]
    return [pytest.param(folder, id=str(folder.relative_to(ROOT / FAMILY))) for folder in found]


def config_of(case):
    """The configuration of a case in our keys."""
    meta = yaml.safe_load(case.config)
    cfg = get_cfg()
    add_lowrank_config(cfg)
    add_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = meta["num_classes"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    _set_backbone(cfg, meta)
    if meta["arch"] == "relation":
        _set_relation(cfg, meta)
    else:
        _set_deformable(cfg, meta)
    branches = cfg.MODEL.LORA_DETR
    flags = flags_of(meta.get("flags", ""))
    for key, names in PER_BRANCH.items():
        value = next((flags[name] for name in names if name in flags), meta.get(key.lower(), []))
        values = [float(each) for each in (value if isinstance(value, list) else [value])]
        if len(values) == 1:
            branches[key] = values[0]
        else:
            branches[f"{key}S"] = values
    branches.CAP = float(meta.get("cap_fraction", branches.CAP))
    return cfg


def flags_of(line):
    """{flag: its values} of a command line."""
    flags, values = {}, []
    for word in shlex.split(line):
        if word.startswith("--"):
            values = flags[word] = []
        else:
            values.append(word)
    return flags


def _set_backbone(cfg, meta):
    if meta["backbone"] == "features":
        cfg.MODEL.BACKBONE.NAME = "GoldenFeatures"
        cfg.MODEL.FPN.IN_FEATURES = meta["channels"]
        return
    assert meta["backbone"].replace("_", "") == "resnet50", f"unknown backbone {meta['backbone']}"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STRIDES)


def _set_deformable(cfg, meta):
    cfg.MODEL.META_ARCHITECTURE = "DeformableDETR"
    node, flags = cfg.MODEL.DEFORMABLE_DETR, flags_of(meta["flags"])
    assert "--with_box_refine" in flags, "only Deformable DETR with box refinement is here"
    node.TWO_STAGE, node.COCO_IDS = False, False
    for flag, values in flags.items():
        if flag in VALUES:
            _set(cfg, VALUES[flag][0], VALUES[flag][1](*values))
        elif flag in SWITCHES:
            _set(cfg, *SWITCHES[flag])
    cfg.TEST.DETECTIONS_PER_IMAGE = int(*flags.get("--topk_eval", ["100"]))
    if "--use_ms_detr" in flags:
        cfg.MODEL.LORA_DETR.K = meta.get("k", [6])
    if "--use_ms_detr" in flags and not flags.keys() & {"--m_lora", "--m_naive"}:
        node.CROSS_FIRST, cfg.MODEL.LORA_DETR.KIND = True, "ffn"


def _set_relation(cfg, meta):
    cfg.MODEL.META_ARCHITECTURE = "RelationDETR"
    node, branches = cfg.MODEL.RELATION_DETR, cfg.MODEL.LORA_DETR
    node.COCO_IDS = False
    node.HIDDEN_DIM, node.DIM_FEEDFORWARD = meta["embed_dim"], meta["dim_feedforward"]
    node.ENC_LAYERS, node.DEC_LAYERS = meta["enc_layers"], meta["dec_layers"]
    node.NUM_QUERIES, node.NUM_LEVELS = meta["num_queries"], meta["num_feature_levels"]
    node.HYBRID.NUM_QUERIES, node.HYBRID.REPEATS = meta["hybrid_num_proposals"], meta["hybrid_assign"]
    node.DENOISING.NUM_QUERIES = meta["denoising_nums"]
    cfg.TEST.DETECTIONS_PER_IMAGE = meta["topk_eval"]
    if meta.get("num_lora"):
        node.CLASS_WEIGHT, node.ENCODER.MATCH_ANCHORS = 0.5, True
        branches.K, branches.RANK = meta["k"], meta["rank_lora"]
        branches.LOSS_WEIGHT, branches.MERGE_INDICES = 0.5, True


def _set(cfg, key, value):
    *path, leaf = key.split(".")
    node = cfg.MODEL
    for name in path:
        node = node[name]
    node[leaf] = value


def model_of(case):
    """The model of a case with its weights, in evaluation mode."""
    model = build_model(config_of(case))
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in case.weights().items()})
    if "features" in case.meta:
        features = case.features()
        for value in features.values():
            value.flags.writeable = True
        model.backbone.features = {
            f"res{name[1:]}": torch.from_numpy(value).requires_grad_() for name, value in features.items()
        }
    return model.eval()


def batch_of(case):
    """Detectron2's batched inputs of a case; without pixels, images are black and padded to the case's canvas."""
    batch = []
    for item, spec in zip(case.inputs(), case.meta["images"]):
        height, width = spec["size"]
        image = torch.zeros(3, height, width)
        if "image" in item:
            image = torch.from_numpy(item["image"].transpose(2, 0, 1).copy())
        entry = {"image": image, "height": item["height"], "width": item["width"]}
        if "boxes" in item:
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.from_numpy(item["boxes"]))
            instances.gt_classes = torch.from_numpy(item["classes"])
            entry["instances"] = instances
        batch.append(entry)
    return batch


def project_folder() -> Path:
    return Path(__file__).resolve().parents[1]
