"""`share_stack` on a whole Mask DINO: the feed-forward layers of its decoder's nine layers around one pair of weights."""
import copy
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.errors import CheckpointError
from lowrank_d2.layers.low_rank import share_stack

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "mask_dino" / "maskdino_small.yaml"
LAYERS, WIDTH, HIDDEN, RANK = 9, 64, 256, 4
WORDS = (
    f"MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.MaskDINO.DEC_LAYERS {LAYERS} MODEL.MaskDINO.DROPOUT 0.0 "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 4 "
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MaskDINO.TRAIN_NUM_POINTS 32"
).replace("''", "").split(" ")


def ffns(model):
    return [layer.ffn for layer in model.decoder.layers]


def shared_from_scratch(model):
    share_stack(ffns(model), RANK, from_scratch=True)
    return model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(load_config(str(CONFIG), WORDS)).eval()


@pytest.fixture
def image():
    torch.manual_seed(1)
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 10:30] = masks[1, 20:60, 40:80] = True
    boxes = Boxes(torch.tensor([[10.0, 8, 30, 40], [40, 20, 80, 60]]))
    instances = Instances((64, 96), gt_masks=BitMasks(masks), gt_boxes=boxes, gt_classes=torch.tensor([0, 3]))
    pixels = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    return [{"image": pixels, "height": 64, "width": 96, "instances": instances}]


@torch.no_grad()
def predicted(model, image):
    instances = model.eval()(image)[0]["instances"]
    return instances.scores, instances.pred_boxes.tensor


@torch.no_grad()
def alike_up_to(model, rank):
    """Lets the weights of the layers differ from their mean by matrices of this rank."""
    for name in ("linear1", "linear2"):
        weights = [getattr(ffn, name).weight for ffn in ffns(model)]
        up, down = torch.randn(len(weights[0]), rank), torch.randn(rank, weights[0].shape[1])
        for number, weight in enumerate(weights):
            weight.copy_(weights[0] + 0.03 * (up * torch.randn(rank)) @ down)
    return model


def test_predictions_stay_where_the_rank_allows(model, image):
    expected = predicted(alike_up_to(model, RANK), image)
    before = sum(p.numel() for p in model.parameters())
    report = share_stack(ffns(model), RANK)
    assert report.kept == () and all(max(errors) < 1e-5 for errors in report.relative_error.values())
    assert all(len(errors) == LAYERS for errors in report.relative_error.values())
    whole, thin = WIDTH * HIDDEN, RANK * (WIDTH + HIDDEN)
    saved = 2 * ((LAYERS - 1) * whole - LAYERS * thin)
    assert report.parameters_before - report.parameters_after == saved
    assert before - sum(p.numel() for p in model.parameters()) == saved
    for mine, true in zip(predicted(model, image), expected):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-3)


def test_a_rank_too_low_says_what_it_loses(model, image):
    trained = copy.deepcopy(model)
    report = share_stack(ffns(model), RANK)
    for name, errors in report.relative_error.items():
        for ffn, old, error in zip(ffns(model), ffns(trained), errors):
            shared, whole = getattr(ffn, name).weight, getattr(old, name).weight
            assert error == pytest.approx(((shared - whole).norm() / whole.norm()).item(), rel=1e-4)
            assert 0.5 < error < 1  # weights drawn independently have little in common


def test_what_is_shared_trains_and_survives_its_checkpoint(model, image, tmp_path):
    shared_from_scratch(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    shared = model.decoder.layers[0].ffn.linear1.shared.weight
    start = shared.detach().clone()
    model.train()
    for _ in range(2):  # A is zero at the start, so that B learns from the second step on
        optimizer.zero_grad()
        sum(model(image).values()).backward()
        optimizer.step()
    private = [(ffn.linear1, ffn.linear2) for ffn in ffns(model)]
    assert all(layer.A.grad.any() and layer.B.grad.any() for pair in private for layer in pair)
    assert not torch.equal(shared, start)

    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = shared_from_scratch(build_model(load_config(str(CONFIG), WORDS)))
    again.load_state_dict(torch.load(tmp_path / "model.pth"))
    owned = [name for name in again.state_dict() if ".shared." in name]
    assert len(owned) == 2 and all(".layers.0.ffn." in name for name in owned)
    for mine, true in zip(predicted(again, image), predicted(model, image)):
        assert torch.equal(mine, true)

    unshared = build_model(load_config(str(CONFIG), WORDS))
    for one, other in ((unshared, again), (again, unshared)):
        with pytest.raises(CheckpointError):
            one.load_state_dict(other.state_dict(), strict=False)
