"""The model against transformers' on the same weights, and the frames of its images and boxes."""
import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances

from lowrank_d2.peft import Adapter, LoRA, inject
from projects.YOLOS.tests.models import CONFIGS, peer_of
from tests.small_models import configured, random_model

SAME_POSITIONS = {"MODEL.YOLOS.MID_POSITION_SIZE": [64, 96]}


def normalised(model, image):
    return ((image - model.pixel_mean) / model.pixel_std)[None]


@torch.no_grad()
def assert_same(model, peer, pixels):
    ours, theirs = model.predict(pixels), peer(pixels)
    assert theirs.logits.abs().max() > 0.1
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (80, 144), (75, 127)], ids=str)
@pytest.mark.parametrize("mid", [[64, 96], []], ids=["mid", "no-mid"])
def test_predictions_are_those_of_transformers(small_model, size, mid):
    # 64 x 96 are the trained positions; 96 x 64 are as many patches in another shape; 75 x 127 leave a rest.
    model = small_model({"MODEL.YOLOS.MID_POSITION_SIZE": mid})
    assert_same(model, peer_of(model), torch.randn(2, 3, *size))


@pytest.mark.parametrize("name", ["yolos_ti", "yolos_s"])
def test_the_published_sizes_predict_as_transformers(name):
    model = random_model(configured(CONFIGS / f"{name}.yaml", {"MODEL.DEVICE": "cpu"}))
    with torch.no_grad():
        for parameter in model.parameters():  # activations as moderate as a trained model's
            parameter.mul_(0.5)
    peer = peer_of(model)
    for size in ((256, 320), (272, 480)):
        assert_same(model, peer, torch.randn(1, 3, *size))


def test_another_size_of_the_middle_positions_has_its_own_grid(small_model):
    model = small_model()  # 4 x 6 patches at first, 3 x 6 between the blocks
    assert model.backbone.pos_embed.shape[1] == 1 + 24 + 20
    assert model.backbone.mid_pos_embed.shape == (2, 1, 1 + 18 + 20, 24)
    with torch.no_grad():
        assert model.predict(torch.randn(1, 3, 80, 80)).logits.shape == (1, 20, 92)


def test_a_single_block_has_no_positions_after_it(small_model):
    model = small_model({"MODEL.YOLOS.DEPTH": 1})
    assert model.backbone.mid_pos_embed.shape[0] == 0
    assert_same(model, peer_of(small_model({"MODEL.YOLOS.DEPTH": 1, "MODEL.YOLOS.MID_POSITION_SIZE": []})), torch.randn(1, 3, 80, 80))


def test_padding_is_image(small_model, batch):
    model = small_model(SAME_POSITIONS)
    peer = peer_of(model)
    padded = torch.zeros(2, 3, 64, 112)
    padded[0, :, :, :96] = normalised(model, batch[0]["image"])
    padded[1, :, :48] = normalised(model, batch[1]["image"])
    with torch.no_grad():
        theirs = peer(padded)
        results = model(batch)
    for i, (x, result) in enumerate(zip(batch, results)):
        scores, labels = theirs.logits[i].softmax(-1)[:, :-1].max(-1)
        kept = model.class_of_label[labels] >= 0
        order = scores[kept].argsort(descending=True)
        height, width = x["height"], x["width"]
        center, size = theirs.pred_boxes[i][kept][order].split(2, dim=-1)
        boxes = torch.cat((center - size / 2, center + size / 2), 1) * torch.tensor([width, height, width, height])
        torch.testing.assert_close(result["instances"].pred_boxes.tensor, boxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(result["instances"].scores, scores[kept][order], rtol=0, atol=1e-6)
        assert result["instances"].image_size == (height, width)


def test_a_rest_that_makes_no_patch_does_not_move_the_boxes(small_model, batch):
    # 96 + 15 columns: the network sees 96 of them, so its fractions are fractions of these.
    model = small_model()
    image = batch[0]["image"]
    wide = torch.cat((image, image[:, :, :15]), dim=2)
    with torch.no_grad():
        whole, cut = model([{"image": image}])[0]["instances"], model([{"image": wide}])[0]["instances"]
    assert cut.image_size == (64, 111)
    torch.testing.assert_close(cut.pred_boxes.tensor, whole.pred_boxes.tensor, rtol=1e-5, atol=1e-4)


def test_targets_are_fractions_of_what_is_seen(small_model):
    model = small_model()
    instances = Instances((64, 111))
    instances.gt_boxes = Boxes(torch.tensor([[24.0, 16, 72, 48], [90, 0, 111, 64], [97, 0, 111, 64]]))
    instances.gt_classes = torch.tensor([0, 11, 79])
    target = model._target(instances, (64, 96))
    assert target.labels.tolist() == [1, 13]  # COCO's ids; the third box lies in the rest
    torch.testing.assert_close(target.boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5], [93 / 96, 0.5, 6 / 96, 1.0]]))


def test_losses_are_those_of_transformers(small_model, batch):
    model = small_model(SAME_POSITIONS)
    peer = peer_of(model)
    model.train()
    losses = model(batch[:1])
    instances = batch[0]["instances"]
    boxes = instances.gt_boxes.tensor / torch.tensor([96.0, 64, 96, 64])
    truth = {
        "class_labels": torch.tensor([1, 90, 13]),
        "boxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1),
    }
    theirs = peer(normalised(model, batch[0]["image"]), labels=[truth])
    assert sum(losses.values()).item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    for name, weight in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2)):
        assert losses[name].item() == pytest.approx(weight * theirs.loss_dict[name].item(), abs=1e-5)


def test_gradients_reach_every_parameter(small_model, batch):
    model = small_model().train()
    sum(model(batch).values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_images_without_objects_train(small_model, batch):
    losses = small_model().train()(batch[1:])
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0 and losses["loss_ce"] > 0


def test_methods_go_to_query_and_value_and_adapters_into_every_block(small_model):
    plain = small_model()
    pixels = torch.randn(1, 3, 64, 96)
    model = inject(copy.deepcopy(plain), [LoRA(rank=2)])
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"backbone.blocks.{n}.attn.qkv.lora_{x}_{part}" for n in range(3) for x in "AB" for part in "qv"
    }
    with torch.no_grad():
        torch.testing.assert_close(model.predict(pixels).logits, plain.predict(pixels).logits, rtol=0, atol=1e-6)
        model.get_parameter("backbone.blocks.0.attn.qkv.lora_B_v").add_(0.1)
        assert not torch.allclose(model.predict(pixels).logits, plain.predict(pixels).logits, atol=1e-4)
        adapted = inject(copy.deepcopy(plain), [Adapter(reduction=4)])
        assert all(block.adapter is not None for block in adapted.backbone.blocks)
        assert not torch.equal(adapted.predict(pixels).logits, plain.predict(pixels).logits)


def test_what_decays(small_model):
    model = small_model()
    decaying = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    assert decaying >= {"backbone.mid_pos_embed", "class_embed.layers.0.bias", "backbone.patch_embed.proj.weight"}
    assert not decaying & {"backbone.pos_embed", "backbone.cls_token", "backbone.det_token", "backbone.norm.weight",
                           "backbone.blocks.0.attn.qkv.bias"}
