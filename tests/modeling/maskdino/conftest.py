"""A Mask DINO small enough to be built for every test."""
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

import lowrank_d2  # noqa: F401  registers the model
from lowrank_d2.config import add_lowrank_config

TINY = {
    "MODEL.META_ARCHITECTURE": "MaskDINO",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.SEM_SEG_HEAD.DIM_FEEDFORWARD": 24,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.FEATURE_ORDER": "low2high",
    "MODEL.MaskDINO.HIDDEN_DIM": 32,
    "MODEL.MaskDINO.DIM_FEEDFORWARD": 24,
    "MODEL.MaskDINO.DEC_LAYERS": 2,
    "MODEL.MaskDINO.NUM_OBJECT_QUERIES": 12,
    "MODEL.MaskDINO.TRAIN_NUM_POINTS": 32,
    "MODEL.MaskDINO.DROPOUT": 0.0,
    "MODEL.MaskDINO.TEST.INSTANCE_ON": True,
    "MODEL.MaskDINO.TEST.SEMANTIC_ON": False,
}


@pytest.fixture
def tiny_config():
    """tiny_config({"MODEL.MaskDINO.DN": "no"}) -> a config."""

    def make(changes=None):
        cfg = get_cfg()
        add_lowrank_config(cfg)
        cfg.merge_from_list([word for pair in {**TINY, **(changes or {})}.items() for word in pair])
        return cfg

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """tiny_model({key: value}) -> a model with seeded weights, none of them zero."""

    def make(changes=None):
        torch.manual_seed(0)
        model = build_model(tiny_config(changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1 or parameter.abs().max() == 0:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def images():
    """Two images of different sizes, with instances: the second has none."""
    torch.manual_seed(1)
    batch = []
    for (height, width), count in (((64, 96), 2), ((50, 70), 0)):
        instances = Instances((height, width))
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for i in range(count):
            masks[i, 8 + i : 40, 10 : 30 + i] = True
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 8.0 + i, 30.0 + i, 40.0] for i in range(count)]).view(-1, 4))
        instances.gt_classes = torch.arange(count)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "height": height, "width": width, "instances": instances})
    return batch
