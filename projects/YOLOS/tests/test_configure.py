"""What a configuration may say, and what it is told when it may not."""
import pytest
import torch
from detectron2.modeling import build_model

from lowrank_d2.errors import ConfigError


@pytest.mark.parametrize("changes, part", [
    ({"MODEL.YOLOS.EMBED_DIM": 25}, "EMBED_DIM is 25, which 2 heads cannot share"),
    ({"MODEL.YOLOS.DEPTH": 0}, "DEPTH is 0"),
    ({"MODEL.YOLOS.FOCAL_GAMMA": -1.0}, "FOCAL_GAMMA is -1"),
    ({"MODEL.YOLOS.INITIAL_POSITION_SIZE": []}, r"INITIAL_POSITION_SIZE is \[\]"),
    ({"MODEL.YOLOS.MID_POSITION_SIZE": [64]}, r"MID_POSITION_SIZE is \[64\]"),
    ({"MODEL.YOLOS.INITIAL_POSITION_SIZE": [8, 64]}, "each at least 16"),
    ({"MODEL.YOLOS.TEST.DUPLICATES": "soft"}, "'soft'. Use one of 'keep', 'nms', 'wbf'"),
    ({"MODEL.YOLOS.TEST.WBF_SCORE": "sum"}, "'sum'. Use one of 'max', 'avg'"),
    ({"MODEL.PEFT.TRAIN": "decoder"}, "'all', 'none', 'embeddings'"),
    ({"MODEL.PEFT.DELTA": "delta.safetensors"}, "MODEL.WEIGHTS is empty"),
])
def test_what_cannot_be_built_says_why(small_config, changes, part):
    with pytest.raises(ConfigError, match=part):
        build_model(small_config(changes))


def test_a_mistyped_key_of_the_project_is_found(small_config):
    with pytest.raises(ConfigError, match="MODEL.YOLOS.FOCAL_GAMMA"):
        small_config({"MODEL.YOLOS.FOCAL_GAMA": 2.0})


@pytest.mark.parametrize("changes, outputs, labels", [
    ({}, 92, [1, 90]),
    ({"MODEL.YOLOS.COCO_IDS": False}, 81, [0, 79]),
    ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 6}, 7, [0, 5]),
])
def test_classes_and_logits(small_model, changes, outputs, labels):
    model = small_model(changes)
    assert model.class_embed.layers[2].weight.shape[0] == outputs == model.criterion.num_labels + 1
    assert model.label_of_class[[0, -1]].tolist() == labels
    assert torch.equal(model.class_of_label[model.label_of_class], torch.arange(len(model.label_of_class)))


def test_the_loss_of_a_configuration(small_model, batch):
    model = small_model({"MODEL.YOLOS.BOX_WEIGHT": 1.0}).train()
    heavier = small_model({"MODEL.YOLOS.CLASS_WEIGHT": 1.5}).train()
    light, heavy = model(batch), heavier(batch)
    assert heavy["loss_bbox"].item() == pytest.approx(5 * light["loss_bbox"].item(), rel=1e-5)
    assert heavy["loss_ce"].item() == pytest.approx(1.5 * light["loss_ce"].item(), rel=1e-5)
