"""Golden cases of SEEM: where they are, and the model that a case describes in the original's own keys.

They lie below $LOWRANK_D2_GOLDEN (default: ../shared/golden beside the repository), and a few in tests/small, so that a
plain clone takes the same path.
"""
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from lowrank_d2.config import add_lowrank_config
from seem import add_config, configure

SHARED = Path(__file__).resolve().parents[4] / "shared" / "golden"
SMALL = Path(__file__).resolve().parent / "small"
GENERATOR = Path(__file__).resolve().parents[3] / "tests" / "golden" / "small" / "golden.py"
ROOT = Path(os.environ.get("LOWRANK_D2_GOLDEN", SHARED)) / "seem"

# The original's keys -> ours, below MODEL.SEEM.
KEYS = {
    **{
        f"BACKBONE.FOCAL.{theirs}": f"FOCAL.{ours}"
        for theirs, ours in {
            "EMBED_DIM": "EMBED_DIM", "DEPTHS": "DEPTHS", "FOCAL_LEVELS": "FOCAL_LEVELS", "MLP_RATIO": "MLP_RATIO",
            "FOCAL_WINDOWS": "FOCAL_WINDOWS", "DROP_PATH_RATE": "DROP_PATH_RATE", "USE_CONV_EMBED": "CONV_EMBED",
            "PATCH_NORM": "PATCH_NORM", "USE_POSTLN": "POST_NORM", "USE_LAYERSCALE": "LAYER_SCALE",
            "SCALING_MODULATOR": "SCALE_MODULATOR",
        }.items()
    },
    "ENCODER.MASK_DIM": "MASK_DIM", "ENCODER.NORM": "NORM", "ENCODER.TRANSFORMER_ENC_LAYERS": "ENC_LAYERS",
    "TEXT.WIDTH": "TEXT.WIDTH", "TEXT.HEADS": "TEXT.HEADS", "TEXT.LAYERS": "TEXT.LAYERS",
    "TEXT.CONTEXT_LENGTH": "TEXT.CONTEXT_LENGTH", "DIM_PROJ": "TEXT.EMBED_DIM",
    **{
        f"DECODER.{key}": key
        for key in (
            "HIDDEN_DIM", "NHEADS", "DIM_FEEDFORWARD", "NUM_OBJECT_QUERIES", "SIZE_DIVISIBILITY", "CLASS_WEIGHT",
            "MASK_WEIGHT", "DICE_WEIGHT", "NO_OBJECT_WEIGHT", "DEEP_SUPERVISION", "TRAIN_NUM_POINTS",
            "OVERSAMPLE_RATIO", "IMPORTANCE_SAMPLE_RATIO", "TEST.INSTANCE_ON", "TEST.SEMANTIC_ON", "TEST.PANOPTIC_ON",
            "TEST.OBJECT_MASK_THRESHOLD", "TEST.OVERLAP_THRESHOLD", "TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE",
        )
    },
    # The original matches with the weights of its losses.
    "DECODER.CLASS_WEIGHT ": "COST_CLASS_WEIGHT", "DECODER.MASK_WEIGHT ": "COST_MASK_WEIGHT",
    "DECODER.DICE_WEIGHT ": "COST_DICE_WEIGHT",
}
# What has no key of ours, because the paper's models have one value of it.
FIXED = {
    "DECODER.PRE_NORM": False, "DECODER.DROPOUT": 0.0, "DECODER.ENFORCE_INPUT_PROJ": False, "DECODER.DETECTION": False,
    "DECODER.SPATIAL.ENABLED": False, "DECODER.GROUNDING.ENABLED": False, "DECODER.CAPTION.ENABLED": False,
    "DECODER.RETRIEVAL.ENABLED": False, "DECODER.OPENIMAGE.ENABLED": False, "DECODER.MASK.ENABLED": True,
    "TEXT.AUTOGRESSIVE": True, "ENCODER.NAME": "transformer_encoder_fpn", "ENCODER.COMMON_STRIDE": 4,
    "BACKBONE.FOCAL.USE_POSTLN_IN_MODULATION": False, "BACKBONE.FOCAL.DROP_RATE": 0.0,
}
# What a case trains besides what methods add -> MODEL.PEFT.TRAIN.
TRAIN = {
    frozenset(): "none",
    frozenset({"predictor.class_embed", "mask_embed"}): "embeddings",
    frozenset({"predictor"}): "decoder",
    frozenset({"sem_seg_head"}): "full_head",
}
ADDED = {"adapter_down", "adapter_up", "lora_A", "lora_B"}


def cases(mode: str) -> list:
    """Parameters: the cases of this mode in both places; one that is skipped where the larger data has none."""
    return _cases(ROOT, mode) + _cases(SMALL, mode)


def _cases(root: Path, mode: str) -> list:
    files = sorted(root.rglob("case.json"))
    found = [file.parent for file in files if json.loads(file.read_text(encoding="utf-8"))["mode"] == mode]
    if not found:
        reason = f"no golden cases of SEEM below {root}; set LOWRANK_D2_GOLDEN"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=f"{root.name}-absent")]
    return [pytest.param(folder, id=f"{root.name}/{folder.relative_to(root)}") for folder in found]


def rules():
    """The module rules.py, which brings golden.py: those of the larger data, or the copies in this repository."""
    golden, seem_rules = SHARED / "golden.py", SHARED / "seem" / "rules.py"
    _module("golden", golden if golden.is_file() else GENERATOR)
    return _module("seem_rules", seem_rules if seem_rules.is_file() else SMALL / "rules.py")


def _module(name: str, file: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def config_of(case):
    """The case's configuration in our keys."""
    theirs = yaml.safe_load(case.config)
    cfg = get_cfg()
    add_lowrank_config(cfg)
    add_config(cfg)
    for key, value in FIXED.items():
        assert _get(theirs["MODEL"], key) == value, f"the case has MODEL.{key} {_get(theirs['MODEL'], key)}"
    assert _get(theirs["MODEL"], "ENCODER.CONVS_DIM") == _get(theirs["MODEL"], "DECODER.HIDDEN_DIM")
    words = [word for key, ours in KEYS.items() for word in (f"MODEL.SEEM.{ours}", _get(theirs["MODEL"], key.strip()))]
    cfg.merge_from_list(words)
    cfg.MODEL.META_ARCHITECTURE = "SEEM"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEEM.DEC_LAYERS = _get(theirs["MODEL"], "DECODER.DEC_LAYERS") - 1
    cfg.MODEL.SEEM.FOCAL.DEPTHWISE = _get(theirs["MODEL"], "BACKBONE.NAME") == "focal_dw"
    cfg.MODEL.SEEM.TEXT.VOCABULARY_SIZE = case.meta["vocabulary"]
    cfg.MODEL.CLASS_NAMES = [f"class {i}" for i in range(case.meta["classes"])]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = theirs["INPUT"]["PIXEL_MEAN"], theirs["INPUT"]["PIXEL_STD"]
    cfg.TEST.DETECTIONS_PER_IMAGE = theirs["TEST"]["DETECTIONS_PER_IMAGE"]
    cfg.DATASETS.TRAIN = tuple(theirs["DATASETS"]["TRAIN"])
    peft = cfg.MODEL.PEFT
    if "trainable" in case.meta:
        peft.TRAIN = TRAIN[frozenset(case.meta["trainable"]) - ADDED]
    if "adapters" in case.meta:
        adapters = case.meta["adapters"]
        peft.METHODS = ["adapter"]
        peft.ADAPTER.REPEATS, peft.ADAPTER.REDUCTION = adapters["number"], adapters["reduction"]
        peft.ADAPTER.RESIDUAL = adapters["residual"]
    if "lora" in case.meta:
        peft.METHODS = peft.METHODS + ["lora"]
        peft.LORA.RANK, peft.LORA.ALPHA = case.meta["lora"]["rank"], float(case.meta["lora"]["alpha"])
    return cfg


def model_of(case, monkeypatch):
    """The case's model with its weights; its data set knows the case's things, its text is the case's."""
    cfg = config_of(case)
    name = cfg.DATASETS.TRAIN[0]
    things = {label: label for label in case.meta["things"]}
    monkeypatch.setitem(MetadataCatalog.data, name, Metadata(name=name, thing_dataset_id_to_contiguous_id=things))
    tokens = torch.from_numpy(case.tokens().copy())
    if case.meta["mode"] == "train":  # the original drew the first template every time
        tokens = tokens[:, :1]
    monkeypatch.setattr(configure, "_tokens", lambda cfg, names: tokens)
    model = build_model(cfg)
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in case.weights().items()})
    if case.meta["text"] == "given":
        given = torch.from_numpy(case.text().copy())
        monkeypatch.setattr(model.text, "forward", lambda training, draws: given)
    return model


def inputs_of(case) -> list:
    """Detectron2's batched inputs."""
    return [_record(item) for item in case.inputs()]


def _record(item) -> dict:
    record = {key: item[key] for key in ("height", "width")}
    record["image"] = torch.from_numpy(item["image"].transpose(2, 0, 1).copy())
    if "classes" in item:
        instances = Instances(tuple(item["image"].shape[:2]))
        instances.gt_classes = torch.from_numpy(item["classes"])
        instances.gt_masks = BitMasks(torch.from_numpy(item["masks"]))
        record["instances"] = instances
    return record


def _get(node, key):
    for part in key.split("."):
        node = node[part]
    return node
