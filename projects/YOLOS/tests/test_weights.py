"""Checkpoints of the authors, of transformers and of ImageNet classifiers, through both checkpointers."""
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors.torch import save_file

from lowrank_d2.engine.checkpoint import LowRankCheckpointer
from lowrank_d2.errors import CheckpointError
from yolos.weights import from_transformers, to_transformers


@pytest.fixture
def model(small_model):
    return small_model()


def fresh(small_config, changes=None):
    torch.manual_seed(9)
    return build_model(small_config(changes)).eval()


def assert_same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert [name for name, tensor in a.state_dict().items() if not torch.equal(tensor, b.state_dict()[name])] == []


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, LowRankCheckpointer])
@pytest.mark.parametrize("form", ["original.pth", "transformers.safetensors", "pytorch_model.bin"])
def test_published_forms_load_by_themselves(tmp_path, small_config, model, checkpointer, form):
    path = tmp_path / form
    if form.startswith("original"):
        torch.save({"model": model.state_dict(), "epoch": 149}, path)
    else:
        tensors = {name: tensor.contiguous() for name, tensor in to_transformers(model.state_dict()).items()}
        save_file(tensors, str(path)) if path.suffix == ".safetensors" else torch.save(tensors, path)
    loaded = fresh(small_config)
    checkpointer(loaded).load(str(path))
    assert_same_weights(loaded, model)


def test_the_names_of_transformers_and_back(model):
    ours = model.state_dict()
    theirs = to_transformers(ours)
    # q, k and v of 3 blocks stand apart there: 6 more tensors of weights, 6 more of biases.
    assert len(theirs) == len(ours) + 12
    assert all(name.startswith(("vit.", "class_labels_classifier.", "bbox_predictor.")) for name in theirs)
    key = theirs["vit.encoder.layer.1.attention.attention.key.weight"]
    assert torch.equal(key, ours["backbone.blocks.1.attn.qkv.weight"][24:48])
    back = from_transformers(theirs)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


def test_transformers_files_say_which_eps_they_mean(tmp_path, small_config, model, caplog):
    theirs = to_transformers(model.state_dict())
    with caplog.at_level(logging.WARNING):
        fresh(small_config).load_state_dict(theirs)
    assert "MODEL.YOLOS.LAYER_NORM_EPS is 1e-06" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fresh(small_config, {"MODEL.YOLOS.LAYER_NORM_EPS": 1e-12}).load_state_dict(theirs)
    assert "LAYER_NORM_EPS" not in caplog.text


@pytest.mark.parametrize("form", ["file", "transformers"])
def test_other_classes_are_initialised_anew_and_named(tmp_path, small_config, model, caplog, form):
    other = fresh(small_config, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3})
    with caplog.at_level(logging.WARNING):
        if form == "file":
            torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
            LowRankCheckpointer(other).load(str(tmp_path / "w.pth"))
        else:
            other.load_state_dict(to_transformers(model.state_dict()), strict=False)
    assert other.class_embed.layers[2].weight.shape == (4, 24)
    assert torch.equal(other.class_embed.layers[1].weight, model.class_embed.layers[1].weight)
    assert "class_embed.layers.2.weight" in caplog.text and "class_embed.layers.1" not in caplog.text


@pytest.mark.parametrize("changes, key", [
    ({"MODEL.YOLOS.INITIAL_POSITION_SIZE": [80, 96]}, "INITIAL_POSITION_SIZE"),
    ({"MODEL.YOLOS.MID_POSITION_SIZE": [64, 96]}, "MID_POSITION_SIZE"),
    ({"MODEL.YOLOS.DEPTH": 2}, "yolos_ti"),
    ({"MODEL.YOLOS.MID_POSITION_SIZE": []}, "larger YOLOS.*MID_POSITION_SIZE"),
    ({"MODEL.YOLOS.MLP_DIM": 40}, "yolos_ti"),
])
@pytest.mark.parametrize("through", ["file", "dict"])
def test_another_model_size_is_refused(tmp_path, small_config, model, changes, key, through):
    other = fresh(small_config, changes)
    with pytest.raises(CheckpointError, match=key):
        if through == "file":
            torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
            LowRankCheckpointer(other).load(str(tmp_path / "w.pth"))
        else:
            other.load_state_dict(model.state_dict(), strict=False)


def test_partial_and_foreign_files_are_refused(small_config, model):
    state = model.state_dict()
    del state["backbone.blocks.2.norm1.weight"]
    with pytest.raises(CheckpointError, match="only a part of YOLOS.*blocks.2.norm1.weight"):
        fresh(small_config).load_state_dict(state, strict=False)
    theirs = to_transformers(model.state_dict())
    del theirs["vit.encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(CheckpointError, match="qkv.bias needs query, key, value, but only query, value"):
        fresh(small_config).load_state_dict(theirs, strict=False)
    with pytest.raises(CheckpointError, match="None of the 1 tensors"):
        fresh(small_config).load_state_dict({"conv1.weight": torch.zeros(1)}, strict=False)


@pytest.mark.parametrize("extra", [0, 1], ids=["plain", "distilled"])
def test_an_imagenet_classifier_starts_a_backbone(small_config, model, caplog, extra):
    prefix = "backbone."
    own = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    classifier = {name: own[name] for name in own if name not in ("det_token", "mid_pos_embed", "pos_embed")}
    classifier |= {"pos_embed": torch.randn(1, 1 + extra + 36, 24), "head.weight": torch.randn(1000, 24)}
    if extra:
        classifier["dist_token"] = torch.randn(1, 1, 24)
    started = fresh(small_config)
    det = started.backbone.pos_embed.detach()[:, -20:].clone()
    with caplog.at_level(logging.WARNING):
        started.load_state_dict(classifier, strict=False)
    assert torch.equal(started.backbone.blocks[1].attn.qkv.weight, model.backbone.blocks[1].attn.qkv.weight)
    positions = started.backbone.pos_embed
    assert positions.shape == (1, 1 + 24 + 20, 24) and torch.equal(positions[:, -20:], det)
    assert torch.equal(positions[:, 0], classifier["pos_embed"][:, 0])
    maps = classifier["pos_embed"][:, -36:].transpose(1, 2).reshape(1, 24, 6, 6)
    resized = torch.nn.functional.interpolate(maps, (4, 6), mode="bicubic")
    torch.testing.assert_close(positions[:, 1:25].transpose(1, 2).reshape(1, 24, 4, 6), resized)
    assert "backbone.det_token" in caplog.text and "blocks" not in caplog.text
