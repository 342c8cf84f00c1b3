"""The whole model: frames of images and boxes, what trains, what decays, methods of adaptation."""
import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from lowrank_d2.engine.optimizer import parameter_groups
from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import LoRA, inject
from projects.LORS.tests.models import SMALL

SWIN = {
    "MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": [1, 1, 2, 1], "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 4],
    "MODEL.SWIN.DROP_PATH_RATE": 0.5,
}
NAMES = ("adamixer_R50", "adamixer_R50_2x64", "lors_R50", "lors_R101", "lors_SwinS")


def changes_of(name):
    return SWIN if "Swin" in name else {}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_trains_and_predicts(small_model, batch, name):
    model = small_model(name, changes_of(name))
    with torch.no_grad():
        found = [result["instances"] for result in model(batch)]
    assert [len(each) for each in found] == [10, 10]
    assert found[0].image_size == (128, 96) and found[1].image_size == (96, 112)
    assert all(each.scores.diff().max() <= 0 and each.pred_classes.max() < 5 for each in found)
    losses = model.train()(batch)
    assert losses.keys() == {f"stage{i}_loss_{kind}" for i in range(3) for kind in ("cls", "bbox", "iou")}
    sum(losses.values()).backward()
    trained = {parameter_name: p for parameter_name, p in model.named_parameters() if p.requires_grad}
    assert [each for each, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    # In stage 0 all boxes are the image, so every attention bias is the same.
    zero = [each for each, p in trained.items() if not p.grad.any()]
    assert set(zero) <= {"decoder.stages.0.attention.tau"} or "Swin" in name


def test_boxes_are_scaled_to_the_wanted_size_and_padding_is_no_part_of_them(small_model, batch):
    model = small_model()
    image = batch[0]["image"]
    with torch.no_grad():
        same, larger = (
            model([{"image": image, "height": height, "width": width}])[0]["instances"]
            for height, width in ((64, 96), (128, 288))
        )
        exact = model([{"image": image}])[0]["instances"]
    scale = torch.tensor([3.0, 2, 3, 2])
    assert torch.equal(exact.pred_boxes.tensor, same.pred_boxes.tensor) and torch.equal(exact.scores, larger.scores)
    torch.testing.assert_close(larger.pred_boxes.tensor, scale * same.pred_boxes.tensor)


def test_first_boxes_are_the_images_without_padding(small_model, batch):
    model = small_model()
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        model(batch)
    _, xyzr, pyramid = seen[0]
    assert xyzr[:, 0, :2].tolist() == [[48, 32], [56, 24]]  # half of 96 x 64 and of 112 x 48
    assert pyramid.shapes == ((16, 32), (8, 16), (4, 8), (2, 4)) and pyramid.strides == (4, 8, 16, 32)  # of 64 x 128


def test_images_of_one_size_do_not_see_each_other(small_model, batch):
    model = small_model("lors_R50")
    other = {"image": 255 - batch[0]["image"]}
    with torch.no_grad():
        alone = model([{"image": batch[0]["image"]}])[0]["instances"]
        beside = model([{"image": batch[0]["image"]}, other])[0]["instances"]
    torch.testing.assert_close(alone.scores, beside.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone.pred_boxes.tensor, beside.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["adamixer_R50", "lors_R50"])
def test_in_bfloat16_boxes_stay_exact(small_model, batch, name):
    model = small_model(name).train()
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
        outputs = model.predict(model.preprocess(batch))
    assert all(output.boxes.dtype == torch.float32 for output in outputs)
    assert losses["stage0_loss_bbox"].item() == pytest.approx(expected["stage0_loss_bbox"].item(), rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_norms_of_the_backbone_keep_their_statistics_and_train_their_scales(small_config, batch):
    model = build_model(small_config()).train()
    norms = {name: m for name, m in model.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = copy.deepcopy(model.state_dict())
    sum(model(batch).values()).backward()
    assert norms and not any(norm.training for norm in norms.values())
    state = model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in state if "running" in name or "batches" in name)
    trains = {name for name, norm in norms.items() if norm.weight.requires_grad}
    assert trains == {name for name in norms if not name.startswith(("stem", "res2"))}
    assert all(norms[name].weight.grad is not None for name in trains)
    assert model.neck.norm.training and model.eval().neck.norm.training is False


def test_drop_path_of_a_swin_acts_in_training(small_config):
    model = build_model(small_config("lors_SwinS", SWIN)).train()
    assert all(block.drop_path.training for layer in model.backbone.layers for block in layer.blocks)


def test_what_decays(small_config):
    cfg = small_config("lors_R50")
    groups = parameter_groups(cfg, build_model(cfg))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(2.5e-5, 1e-4)]
    cfg = small_config("lors_SwinS", SWIN)
    model = build_model(cfg)
    decay = {id(p): group["weight_decay"] for group in parameter_groups(cfg, model) for p in group["params"]}
    exempt = {name for name, p in model.named_parameters() if decay.get(id(p)) == 0}
    assert {"backbone.norm2.bias", "backbone.layers.0.blocks.0.attn.relative_position_bias_table",
            "decoder.stages.0.mixing.norm.weight", "neck.norm.weight"} <= exempt
    decaying = {"queries.content.weight", "decoder.stages.1.mixing.out_proj.A", "decoder.shared.out_proj.weight"}
    assert not exempt & decaying


def test_a_run_records_the_accuracy_of_the_matched_queries(small_model, batch):
    model = small_model().train()
    with EventStorage() as storage:
        model(batch)
    assert set(storage.latest()) == {f"stage{i}_pos_acc" for i in range(3)}
    assert all(0 <= value <= 100 for value, _ in storage.latest().values())


@pytest.mark.parametrize("name", ["adamixer_R50", "lors_R50"])
def test_methods_go_to_the_attention_and_the_offsets(small_model, batch, name):
    plain = small_model(name)
    model = inject(copy.deepcopy(plain), [LoRA(rank=2)])
    trained = {each for each, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"decoder.stages.{n}.{target}" for n in range(3) for target in (
            *(f"attention.qkv.lora_{x}_{part}" for x in "AB" for part in "qv"),
            *(f"sampling.offsets.lora_{x}" for x in "AB"),
        )
    }
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[0]["instances"].scores, plain(batch)[0]["instances"].scores)
        model.get_parameter("decoder.stages.0.attention.qkv.lora_B_v").add_(0.1)
        assert not torch.allclose(model(batch)[0]["instances"].scores, plain(batch)[0]["instances"].scores, atol=1e-5)


def test_a_method_can_adapt_what_lors_shares(small_model, batch):
    model = inject(small_model("lors_R50"), [LoRA(rank=2, targets=("re:decoder\\.shared\\..*",))])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    sum(model.train()(batch).values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * 5 and all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("changes, words", [
    ({"MODEL.ADAMIXER.EMBED_DIM": 36}, "multiple of 32"),
    ({"MODEL.ADAMIXER.NUM_HEADS": 5}, "NUM_HEADS 5 cannot share"),
    ({"MODEL.ADAMIXER.SAMPLING_GROUPS": 3}, "SAMPLING_GROUPS 3 cannot share"),
    ({"MODEL.ADAMIXER.IN_POINTS": 0}, "IN_POINTS is 0"),
    ({"MODEL.ADAMIXER.IN_FEATURES": ["res2", "res9"]}, "res9, which the backbone does not give"),
    ({"MODEL.ADAMIXER.IN_FEATURES": []}, "IN_FEATURES is empty"),
    ({"MODEL.ADAMIXER.LORS.ADAPTIVE_RANK": -1}, "ADAPTIVE_RANK is -1"),
    ({"MODEL.PEFT.DELTA": "some.safetensors"}, "MODEL.WEIGHTS is empty"),
])
def test_what_cannot_be_built_is_said(small_config, changes, words):
    with pytest.raises(ConfigError, match=words):
        build_model(small_config("lors_R50", changes))


def test_three_levels_are_sampled_too(small_model, batch):
    model = small_model("lors_R50", {"MODEL.ADAMIXER.IN_FEATURES": ["res3", "res4", "res5"]})
    with torch.no_grad():
        assert len(model(batch)[0]["instances"]) == SMALL["MODEL.ADAMIXER.NUM_QUERIES"]
    assert len(model.neck.lateral) == 3
