"""Mask DINO with branches: supervised class, box and mask in training, gone in evaluation."""
import logging

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

import lowrank_d2.modeling.maskdino  # noqa: F401  registers the model
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.layers.draws import Draws, RecordingDraws
from lowrank_d2.modeling.branch_weights import settle_branches

SMALL = "configs/mask_dino/maskdino_small.yaml"


def model(*words):
    torch.manual_seed(0)
    words = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.MaskDINO.TRAIN_NUM_POINTS", "32", *words]
    return build_model(load_config(SMALL, words))


def batch(*counts):
    torch.manual_seed(1)
    inputs = []
    for count in counts:
        masks = torch.zeros(count, 64, 96, dtype=torch.bool)
        for i, mask in enumerate(masks):
            mask[5 + 3 * i : 30 + 4 * i, 10 + 5 * i : 40 + 6 * i] = True
        masks = BitMasks(masks)
        instances = Instances((64, 96), gt_classes=torch.zeros(count, dtype=torch.int64), gt_masks=masks)
        instances.gt_boxes = masks.get_bounding_boxes()
        inputs.append({"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "instances": instances})
    return inputs


@pytest.mark.parametrize("counts", [(4, 1), (3, 0), (0, 0)])
def test_every_branch_of_every_layer_has_all_losses(counts):
    trained = model("MODEL.LORA_DETR.K", "[2, 5]", "MODEL.LORA_DETR.INIT", "xavier").train()
    trained.draws = draws = RecordingDraws(Draws())
    losses = trained(batch(*counts))
    layers = len(trained.decoder.layers)
    suffixes = {key.removeprefix("loss_mask") for key in losses if key.startswith("loss_mask") and "lora" in key}
    assert suffixes == {f"{layer}_lora_{j}" for layer in ["", *(f"_{i}" for i in range(1, layers))] for j in range(2)}
    sum(losses.values()).backward()
    assert all(trained.get_parameter(name).grad is not None for name in training_only_names(trained))
    keeps = [key for key in draws.recorded if key.startswith("assigner/")]
    assert len(keeps) == 2 * layers * sum(count > 0 for count in counts)
    assert "loss/branch_1/layer_last/oversampled_coords" in draws.recorded


def test_branches_that_start_as_copies_have_the_losses_of_their_layer_where_pairs_agree():
    merged = "MODEL.LORA_DETR.K [1] MODEL.LORA_DETR.TAU 1.0 MODEL.LORA_DETR.MERGE_INDICES True".split()
    plain, branched = model(), model(*merged, "MODEL.LORA_DETR.RULE", "paper")
    branched.load_state_dict(plain.state_dict())
    losses = branched.train()(batch(3, 2))
    for name in ("loss_ce", "loss_bbox", "loss_giou"):  # nothing exceeds tau: all pairs are the one-to-one pairs
        torch.testing.assert_close(losses[f"{name}_lora_0"], losses[name])
    torch.testing.assert_close(losses["loss_dice_lora_0"], losses["loss_dice"], rtol=0.2, atol=0)  # at other points


def test_the_loss_weight_and_the_number_of_branches_count():
    words = ["MODEL.LORA_DETR.K", "[2, 2]", "MODEL.LORA_DETR.RULE", "paper"]
    one, four = model(*words), model(*words, "MODEL.LORA_DETR.LOSS_WEIGHT", "4.0")
    four.load_state_dict(one.state_dict())
    inputs = batch(3, 2)
    with torch.random.fork_rng():
        light = one.train()(inputs)
    heavy = four.train()(inputs)  # the same dropout and draws
    torch.testing.assert_close(heavy["loss_giou_1_lora_1"], 4 * light["loss_giou_1_lora_1"])
    torch.testing.assert_close(heavy["loss_giou_1"], light["loss_giou_1"])


def test_evaluation_is_that_of_the_model_without_branches():
    branched, plain = model("MODEL.LORA_DETR.K", "[2, 4, 6]").eval(), model().eval()
    plain.load_state_dict(branched.state_dict())
    with torch.no_grad():
        one, other = (each(batch(1))[0]["instances"] for each in (branched, plain))
    assert torch.equal(one.scores, other.scores) and torch.equal(one.pred_masks, other.pred_masks)


def test_branches_come_and_go_with_checkpoints(caplog):
    branched, plain = model("MODEL.LORA_DETR.K", "[2]"), model()
    names = training_only_names(branched)
    before = {name: branched.state_dict()[name].clone() for name in names}
    branched.load_state_dict(plain.state_dict())
    assert "no branches" in caplog.text
    assert all(torch.equal(branched.state_dict()[name], before[name]) for name in names)
    tensors = dict(branched.state_dict())
    settle_branches(tensors, model("MODEL.LORA_DETR.K", "[2, 2]"), logging.getLogger("test"))
    assert len(tensors) == len(plain.state_dict()) + 2 * len(names)


def test_no_more_than_all_queries():
    with pytest.raises(ConfigError, match="queries"):
        model("MODEL.LORA_DETR.K", "[1000]")
