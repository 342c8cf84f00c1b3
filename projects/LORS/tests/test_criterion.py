"""Costs and losses: normalisers, empty images and batches, crowds."""
import pytest
import torch

from lors.criterion import AdaMixerCriterion, Objects, Weights
from lors.decode import decode
from lors.stage import StageOutput
from lowrank_d2.layers.boxes import giou


def criterion(finite_empty_batch=False):
    return AdaMixerCriterion(loss=Weights(), cost=Weights(), finite_empty_batch=finite_empty_batch)


def outputs_of(count, queries, stages=1, classes=3):
    torch.manual_seed(0)
    found = []
    for _ in range(stages):
        low = 50 * torch.rand(count, queries, 2)
        corners = torch.cat((low, low + 5 + 20 * torch.rand(count, queries, 2)), -1).requires_grad_()
        found.append(StageOutput(None, torch.randn(count, queries, classes, requires_grad=True), None, corners))
    return found


def objects_of(*corners, extent=(80.0, 60.0)):
    boxes = torch.tensor(corners).reshape(-1, 4)
    return Objects(torch.arange(len(boxes)) % 3, boxes, torch.tensor(extent * 2))


def test_costs_are_of_corners_as_fractions_and_of_pixels():
    outputs = outputs_of(1, 4, stages=2)
    truth = objects_of([10.0, 10, 30, 40], [5, 20, 70, 50])
    costs = criterion().costs(outputs, 0, truth)
    assert costs.shape == (2, 4, 2)
    box, true, extent = outputs[1].boxes[0, 3], truth.boxes[1], truth.extent
    p = outputs[1].logits[0, 3, 1].sigmoid()
    label = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    expected = 2 * label + 5 * (box / extent - true / extent).abs().sum() - 2 * giou(box, true, eps=0)
    torch.testing.assert_close(costs[1, 3, 1], expected.detach())


def test_losses_are_divided_by_the_matched_queries():
    truth = [objects_of([10.0, 10, 30, 40], [5, 20, 70, 50]), objects_of([0.0, 0, 80, 60])]
    outputs = outputs_of(2, 4)
    values, accuracies = criterion()(outputs, truth)
    pairs = criterion().match(outputs, truth)["stage0"]
    distance = overlap = 0
    right = []
    for image, (pair, each) in enumerate(zip(pairs, truth)):
        mine, true = outputs[0].boxes[image, pair.queries], each.boxes[pair.targets]
        distance = distance + ((mine - true).abs() / each.extent).sum()
        overlap = overlap + (1 - giou(mine, true, eps=0)).sum()
        right += (outputs[0].logits[image, pair.queries].argmax(-1) == each.labels[pair.targets]).tolist()
    assert values["stage0_loss_bbox"].item() == pytest.approx(5 * distance.item() / 3, rel=1e-5)
    assert values["stage0_loss_iou"].item() == pytest.approx(2 * overlap.item() / 3, rel=1e-5)
    assert accuracies["stage0_pos_acc"].item() == pytest.approx(100 * sum(right) / 3)
    # Three objects in one image and none in the other: the same normaliser.
    crowd = [objects_of([10.0, 10, 30, 40], [5, 20, 70, 50], [0, 0, 80, 60]), objects_of()]
    again, _ = criterion()(outputs, crowd)
    matched = criterion().match(outputs, crowd)["stage0"]
    assert len(matched[0].queries) == 3 and len(matched[1].queries) == 0
    hot = torch.zeros(2, 4, 3)
    hot[0, matched[0].queries, crowd[0].labels[matched[0].targets]] = 1
    p = outputs[0].logits.sigmoid()
    focal = torch.where(hot == 1, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log())
    assert again["stage0_loss_cls"].item() == pytest.approx(2 * focal.sum().item() / 3, rel=1e-5)


def test_of_a_crowd_as_many_as_there_are_queries_are_matched():
    truth = [objects_of(*([float(i), 0, i + 10.0, 20] for i in range(7)))]
    outputs = outputs_of(1, 4)
    values, _ = criterion()(outputs, truth)
    pairs = criterion().match(outputs, truth)["stage0"][0]
    assert pairs.queries.tolist() == [0, 1, 2, 3] and len(set(pairs.targets.tolist())) == 4
    distance = (outputs[0].boxes[0] - truth[0].boxes[pairs.targets]).abs() / truth[0].extent
    assert values["stage0_loss_bbox"].item() == pytest.approx(5 * distance.sum().item() / 4, rel=1e-5)


def test_a_batch_without_objects_has_an_infinite_class_loss_unless_mended():
    outputs, truth = outputs_of(2, 4, stages=2), [objects_of(), objects_of()]
    values, accuracies = criterion()(outputs, truth)
    assert {name: value.item() for name, value in values.items()} == {
        f"stage{i}_loss_{kind}": float("inf") if kind == "cls" else 0 for i in (0, 1) for kind in ("cls", "bbox", "iou")
    }
    assert [value.item() for value in accuracies.values()] == [0, 0]
    mended, _ = criterion(finite_empty_batch=True)(outputs, truth)
    background = torch.nn.functional.softplus(outputs[1].logits) * outputs[1].logits.sigmoid() ** 2 * 0.75
    assert mended["stage1_loss_cls"].item() == pytest.approx(2 * background.sum().item(), rel=1e-5)
    sum(mended.values()).backward()
    assert all(output.boxes.grad is not None and not output.boxes.grad.any() for output in outputs)
    some = [objects_of([10.0, 10, 30, 40]), objects_of()]
    plain, mended = criterion()(outputs, some)[0], criterion(finite_empty_batch=True)(outputs, some)[0]
    assert plain == mended


def test_predictions_that_are_not_numbers_are_refused():
    outputs = outputs_of(1, 4)
    outputs[0].boxes.data[0, 2, 1] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        criterion()(outputs, [objects_of([10.0, 10, 30, 40])])


def test_the_best_pairs_of_query_and_class_are_detected():
    logits = torch.tensor([[3.0, -1, 2], [0, 1, -5]])
    corners = torch.tensor([[-5.0, 2, 10, 20], [0, 0, 40, 30]])
    found = decode(logits, corners, (30, 40), (60, 40), max_detections=100)
    assert found.pred_classes.tolist() == [0, 2]  # as many as queries; both of the first one, which is left unclipped
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2]).sigmoid())
    assert found.pred_boxes.tensor.tolist() == [[-5, 4, 10, 40]] * 2 and found.image_size == (60, 40)
    assert len(decode(logits, corners, (30, 40), (30, 40), max_detections=1)) == 1
