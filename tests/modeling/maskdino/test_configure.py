from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.maskdino.configure import has_no_object_logit, inference_options, resolve

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "mask_dino"
GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"MODEL.MaskDINO.DN": "contrastive"}, "MODEL.MaskDINO.DN is 'contrastive'.*'no', 'standard', 'seg'"),
        ({"MODEL.MaskDINO.INITIALIZE_BOX_TYPE": "mask"}, "'no', 'mask2box', 'bitmask'"),
        ({"MODEL.SEM_SEG_HEAD.FEATURE_ORDER": "high"}, "'low2high', 'high2low'"),
        ({"MODEL.MaskDINO.TRANSFORMER_DECODER_NAME": "X"}, "TRANSFORMER_DECODER_NAME is 'X'"),
        ({"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "X"}, "PIXEL_DECODER_NAME is 'X'"),
        ({"MODEL.MaskDINO.HIDDEN_DIM": 48}, "HIDDEN_DIM is 48.*multiple of 32"),
        ({"MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS": 2}, "TOTAL_NUM_FEATURE_LEVELS 2"),
        (
            {"MODEL.MaskDINO.INITIALIZE_BOX_TYPE": "bitmask", "MODEL.MaskDINO.TWO_STAGE": False},
            "needs TWO_STAGE True and INITIAL_PRED True",
        ),
        ({"MODEL.MaskDINO.TEST.PANOPTIC_ON": True, "DATASETS.TRAIN": ("no_things",)}, "thing_dataset_id_to_contiguous"),
        ({"MODEL.PEFT.DELTA": "delta.safetensors"}, "MODEL.WEIGHTS is empty"),
        ({"USE_LORA": True}, "another function"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(tiny_config(changes))


def test_panoptic_things_come_from_the_metadata(tiny_config):
    MetadataCatalog.get("test_configure_things").thing_dataset_id_to_contiguous_id = {7: 0, 9: 3}
    cfg = tiny_config({"MODEL.MaskDINO.TEST.PANOPTIC_ON": True, "DATASETS.TRAIN": ("test_configure_things",)})
    assert inference_options(cfg).thing_classes == (0, 3)


@pytest.mark.parametrize(
    "semantic, panoptic, mended, extra, softmax",
    [(True, False, False, True, True), (False, False, False, False, False), (True, True, False, True, False),
     (True, True, True, False, False)],
)  # fmt: skip
def test_when_the_class_head_has_an_output_for_nothing(tiny_config, semantic, panoptic, mended, extra, softmax):
    MetadataCatalog.get("test_configure_things").thing_dataset_id_to_contiguous_id = {7: 0, 9: 3}
    cfg = tiny_config({
        "MODEL.MaskDINO.SEMANTIC_CE_LOSS": True,
        "MODEL.MaskDINO.TEST.SEMANTIC_ON": semantic,
        "MODEL.MaskDINO.TEST.PANOPTIC_ON": panoptic,
        "MODEL.MaskDINO.FIX.PANOPTIC_CE": mended,
        "DATASETS.TRAIN": ("test_configure_things",),
    })
    assert has_no_object_logit(cfg) == extra and inference_options(cfg).softmax == softmax
    assert build_model(cfg).decoder.heads.class_embed.out_features == 5 + extra


@pytest.mark.parametrize("name, parameters", [("R50", 52_017_477), ("SwinL", 222_758_617)])
def test_the_published_models_have_their_size(name, parameters):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"maskdino_{name}.yaml"))
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.golden
@pytest.mark.parametrize("name", ["R50", "SwinL"])
def test_our_configs_describe_the_published_models(name):
    dump = GOLDEN / "maskdino" / f"config_maskdino_{name}.yaml"
    if not dump.is_file():
        pytest.skip(f"no golden data at {dump}")
    nodes = []
    for file in (CONFIGS / f"maskdino_{name}.yaml", dump):
        cfg = get_cfg()
        add_lowrank_config(cfg)
        cfg.merge_from_file(str(file))
        cfg.MODEL.SEM_SEG_HEAD.NUM_FEATURE_LEVELS = 3  # without effect: TOTAL_NUM_FEATURE_LEVELS counts
        used = ["BACKBONE", "MaskDINO", "SEM_SEG_HEAD", "PIXEL_MEAN", "PIXEL_STD"]
        nodes.append({key: cfg.MODEL[key] for key in used + ["RESNETS" if name == "R50" else "SWIN"]})
    assert nodes[0] == nodes[1]


def test_resolve_leaves_the_given_config_alone(tiny_config):
    cfg = tiny_config({"USE_ADAPTERS": True})
    before = cfg.dump()
    resolve(cfg)
    assert cfg.dump() == before
