"""The losses: exact against torch's and transformers' where these have them, by hand where not."""
import math

import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.modeling.matcher import HungarianMatcher
from lowrank_d2.modeling.predictions import Prediction, Target
from yolos.criterion import YOLOSCriterion, softmax_focal_loss


def criterion(**changes):
    matcher = HungarianMatcher(cost_class=1, cost_box=5, cost_giou=2, class_cost="softmax", giou_eps=0)
    values = dict(class_weight=1.0, box_weight=5.0, giou_weight=2.0, no_object_weight=0.1, focal_gamma=0.0)
    return YOLOSCriterion(matcher=matcher, num_labels=91, **{**values, **changes})


@pytest.fixture
def prediction():
    torch.manual_seed(0)
    boxes = torch.cat((0.2 + 0.6 * torch.rand(2, 7, 2), 0.02 + 0.3 * torch.rand(2, 7, 2)), dim=-1)
    return Prediction(torch.randn(2, 7, 92), boxes)


def test_without_focus_it_is_the_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    weight = torch.tensor([1.0, 1, 1, 1, 0.1])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
    torch.testing.assert_close(softmax_focal_loss(logits, labels, weight, 0.0), expected)


def test_the_focal_factor_of_two_tokens():
    # Probabilities of the labels 3/4 and 1/2, weights 1 and 0.1.
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    loss = softmax_focal_loss(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.1]), 2.0)
    expected = (0.25**2 * -math.log(0.75) + 0.1 * 0.5**2 * math.log(2)) / 1.1
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_certain_token_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    softmax_focal_loss(logits, torch.tensor([0]), torch.ones(2), 2.0).backward()
    assert logits.grad.abs().max() == 0


def test_weights_scale_the_terms(prediction, targets):
    plain = criterion(focal_gamma=2.0, box_weight=1.0)(prediction, targets)
    focal = criterion(focal_gamma=2.0, class_weight=1.5, box_weight=1.0)(prediction, targets)
    assert focal["loss_ce"] == pytest.approx(1.5 * plain["loss_ce"].item())
    assert focal["loss_bbox"] == plain["loss_bbox"] and focal["loss_giou"] == plain["loss_giou"]
    original = criterion()(prediction, targets)
    assert original["loss_bbox"].item() == pytest.approx(5 * focal["loss_bbox"].item(), rel=1e-6)
    assert focal["loss_ce"] < 1.5 * original["loss_ce"]  # the factor is below 1 everywhere


def test_box_losses_are_divided_by_the_objects(prediction):
    # One object, and one token exactly on it: the distance is zero, and of two such images still.
    truth = [Target(torch.tensor([3]), prediction.boxes[i, :1]) for i in range(2)]
    losses = criterion()(prediction, truth)
    assert losses["loss_bbox"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-6)
    moved = [Target(t.labels, t.boxes + torch.tensor([0.01, 0, 0, 0])) for t in truth]
    assert criterion()(prediction, moved)["loss_bbox"].item() == pytest.approx(5 * 0.01, rel=1e-4)


def test_objects_are_averaged_over_the_processes(prediction, targets, monkeypatch):
    alone = criterion()(prediction, targets)  # 5 objects
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda count: [count, 15])
    together = criterion()(prediction, targets)
    for name, share in (("loss_bbox", 2), ("loss_giou", 2), ("loss_ce", 1)):
        assert together[name].item() == pytest.approx(alone[name].item() / share, rel=1e-6)


def test_no_object_at_all_divides_by_one(prediction):
    empty = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    losses = criterion()(prediction, empty)
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0
    weight = torch.tensor([1.0] * 91 + [0.1])
    expected = F.cross_entropy(prediction.logits.flatten(0, 1), torch.full((14,), 91), weight)
    torch.testing.assert_close(losses["loss_ce"], expected)


def test_the_whole_loss_against_transformers(prediction, targets):
    loss = pytest.importorskip("transformers.loss.loss_for_object_detection", reason="no transformers to compare with")
    peer = loss.ImageLoss(
        matcher=loss.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), num_classes=91, eos_coef=0.1,
        losses=["labels", "boxes"],
    )
    theirs = peer(
        {"logits": prediction.logits, "pred_boxes": prediction.boxes},
        [{"class_labels": target.labels, "boxes": target.boxes} for target in targets],
    )
    ours = criterion()(prediction, targets)
    for name, weight in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2)):
        assert ours[name].item() == pytest.approx(weight * theirs[name].item(), rel=1e-5)
