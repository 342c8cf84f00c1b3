import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws
from lowrank_d2.modeling.matcher import HungarianMatcher, assign, focal_cost, softmax_cost
from lowrank_d2.modeling.predictions import Prediction, Target


def prediction(images, queries, classes=4, embed=6):
    return Prediction(
        torch.randn(images, queries, classes), torch.rand(images, queries, 4), torch.randn(images, queries, embed)
    )


def target(count, classes=4, size=(16, 24)):
    return Target(torch.randint(classes, (count,)), torch.rand(count, 4), torch.rand(count, *size) > 0.5)


def test_focal_cost_of_one_number():
    # p = 1/2: 0.25 * 0.25 * ln 2 - 0.75 * 0.25 * ln 2
    cost = focal_cost(torch.zeros(1, 3), torch.tensor([2]))
    torch.testing.assert_close(cost, torch.tensor([[-0.125 * np.log(2)]], dtype=torch.float32))


def test_softmax_cost_is_minus_the_probability_of_the_label():
    logits = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float32)
    torch.testing.assert_close(softmax_cost(logits, torch.tensor([1, 0])), torch.tensor([[-0.75, -0.25]]))


def test_each_set_and_image_is_assigned_by_its_own_costs():
    torch.manual_seed(0)
    sets = {"layer_last": prediction(3, 7), "layer_0": prediction(3, 7)}
    targets = [target(4), target(0), target(2)]
    for t in targets:
        object.__setattr__(t, "masks", None)  # not looked at without mask costs
    pairs = HungarianMatcher(cost_class=2, cost_box=5)(sets, targets)
    for name, single in sets.items():
        for image, (truth, found) in enumerate(zip(targets, pairs[name])):
            cost = 2 * focal_cost(single.logits[image], truth.labels)
            cost += 5 * torch.cdist(single.boxes[image], truth.boxes, p=1)
            queries, indices = linear_sum_assignment(cost)
            assert found.queries.tolist() == queries.tolist() and found.targets.tolist() == indices.tolist()
            assert found.groups == 1


def test_more_instances_than_queries_match_every_query():
    torch.manual_seed(0)
    (found,) = HungarianMatcher(cost_class=1)({"layer_last": prediction(1, 3)}, [target(5)])["layer_last"]
    assert found.queries.tolist() == [0, 1, 2] and len(set(found.targets.tolist())) == 3


def test_mask_costs_find_the_masks_and_do_not_depend_on_the_order_of_the_sets():
    torch.manual_seed(0)
    truth = Target(torch.tensor([0, 0, 0]), torch.rand(3, 4), torch.zeros(3, 16, 16, dtype=torch.bool))
    truth.masks[0, :8], truth.masks[1, 8:], truth.masks[2, :, :8] = True, True, True
    features = 20.0 * torch.nn.functional.avg_pool2d(truth.masks[None].float(), 4) - 10  # one channel per mask
    right = Prediction(torch.zeros(1, 3, 1), torch.rand(1, 3, 4), torch.eye(3)[None, [2, 0, 1]])
    other = Prediction(torch.zeros(1, 3, 1), torch.rand(1, 3, 4), torch.eye(3)[None])
    matcher = HungarianMatcher(cost_class=1, cost_mask=5, cost_dice=5, num_points=64)
    recording = RecordingDraws(Draws())
    found = matcher({"layer_last": right, "layer_0": other}, [truth], features, recording)
    assert found["layer_last"][0].targets.tolist() == [2, 0, 1]
    assert found["layer_0"][0].targets.tolist() == [0, 1, 2]
    assert sorted(recording.recorded) == [f"matcher/layer_{i}/image_0/point_coords" for i in ("0", "last")]
    again = matcher({"layer_0": other, "layer_last": right}, [truth], features, ReplayDraws(recording.recorded))
    assert again["layer_last"][0].targets.tolist() == [2, 0, 1]


def test_costs_that_are_not_numbers_are_refused():
    broken = prediction(1, 3)
    broken.boxes[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        HungarianMatcher(cost_class=1, cost_giou=1)({"layer_last": broken}, [target(2)])


def test_the_overlap_of_small_boxes_needs_a_small_eps():
    # Boxes of 0.002 x 0.002: the union of 4e-6 is no larger than the default's 1e-6 would like.
    truth = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.002, 0.002]]))
    same = Prediction(torch.zeros(1, 1, 1), truth.boxes[None])
    cost = [
        HungarianMatcher(cost_class=0, cost_giou=1, giou_eps=eps)._class_and_box_cost([same], 0, truth).item()
        for eps in (0.0, 1e-6)
    ]
    assert cost[0] == pytest.approx(-1) and cost[1] == pytest.approx(-0.8, abs=1e-4)


def test_of_more_instances_than_queries_the_cheapest_are_matched():
    crowd = torch.tensor([[[5.0, 1, 3], [1, 0, 9]], [[0, 9, 9], [9, 9, 0]]])  # 2 sets of 2 queries, 3 instances
    pairs = assign(["a", "b"], [crowd, torch.zeros(2, 2, 0)])
    assert [(p.queries.tolist(), p.targets.tolist()) for p in pairs["a"]] == [([0, 1], [1, 0]), ([], [])]
    assert pairs["b"][0].targets.tolist() == [0, 2]


def test_the_logarithms_of_the_focal_cost_may_have_another_epsilon():
    prediction = Prediction(torch.tensor([[[-40.0, 40.0]]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]))
    target = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    default, wide = (HungarianMatcher(cost_class=1.0, focal_eps=eps) for eps in (1e-8, 1e-6))
    costs = [matcher._class_and_box_cost([prediction], 0, target).item() for matcher in (default, wide)]
    assert costs == pytest.approx([0.25 * 8 * math.log(10), 0.25 * 6 * math.log(10)], rel=1e-5)
