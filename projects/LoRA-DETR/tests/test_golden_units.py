"""The reference data of single functions: assignment, merging, class losses, relations of boxes, duplicates."""
import json
import math

import numpy as np
import pytest
import torch

from lora_detr import losses
from lora_detr.detections import detect
from lora_detr.relation import FEATURES, SCALE, box_relations
from lowrank_d2.layers.position_encoding import sine_features
from lowrank_d2.modeling.matcher import Pairs
from lowrank_d2.modeling.one_to_many import (
    Assignment, OneToManyAssigner, PaddedTargets, assignment_of, match_scores, merged,
)
from lowrank_d2.modeling.predictions import Target
from tests.golden.conftest import ROOT

pytestmark = pytest.mark.golden
UNITS = ROOT / "lora_detr" / "units"


def stored(name):
    """The entries of a file of units, as parameters."""
    file = UNITS / f"{name}.json"
    if not file.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{file} is not there"), id="absent")]
    entries = json.loads(file.read_text(encoding="utf-8"))
    entries = entries if isinstance(entries, list) else [entries]
    return [pytest.param(entry, id=entry.get("name", str(i))) for i, entry in enumerate(entries)]


def assigned(scores, case, rule):
    """{(query, target)} of one image."""
    if not len(scores):
        return set()
    assigner = OneToManyAssigner(k=[case["k"]], tau=[case["tau"]], alpha=[0.3], cap=case["cap_fraction"], rule=rule)
    present, keep = torch.ones(len(scores), dtype=torch.bool), torch.tensor(case["keep"])
    paired = assigner.assign(torch.as_tensor(scores, dtype=torch.float32)[None], present, keep[None])[0]
    return {(int(q), int(g)) for g, q in paired.nonzero()}


@pytest.mark.parametrize("case", stored("assigner_scores"))
def test_assignment_by_scores(case):
    assert assigned(case["scores"], case, "paper") == set(map(tuple, case["paper"]))
    if "released_error" in case:
        with pytest.raises(ValueError, match="k is"):
            assigned(case["scores"], case, "released")
        return
    accepted = [set(map(tuple, pairs)) for pairs in case.get("released_accepted", [case["released"]])]
    assert assigned(case["scores"], case, "released") in accepted


@pytest.mark.parametrize("unit", stored("assigner_predictions"))
def test_assignment_by_predictions(unit):
    target = Target(torch.tensor(unit["target_labels"]), torch.tensor(unit["target_boxes"]))
    logits, boxes = torch.tensor(unit["logits"]), torch.tensor(unit["boxes"])
    for case in unit["cases"]:
        scores = match_scores(logits[None], boxes[None], PaddedTargets.of([target]), torch.tensor(case["alpha"]))[0]
        np.testing.assert_allclose(scores, case["scores"], atol=1e-6)
        case = {**unit, **case}
        for rule in ("released", "paper"):
            assert assigned(scores, case, rule) == set(map(tuple, case[rule]))


@pytest.mark.parametrize("case", stored("merge"))
def test_merging(case):
    queries, count = case["queries"], 1 + max([t for _, t in case["one_to_one"] + case["one_to_many"]], default=0)
    one_to_one = torch.tensor(case["one_to_one"], dtype=torch.int64).reshape(-1, 2)
    table = Assignment.of_pairs([[Pairs(*one_to_one.unbind(1))]], "cpu").table((1, 1, queries))
    scores, paired = ascending(case["one_to_many"], count, queries)
    result = merged(paired, scores, table)
    assert [[int(q), int(t)] for q, t in zip(result.queries, result.targets)] == case["merged"]


def ascending(pairs, targets, queries):
    """Scores (1, 1, G, Q) that rise along `pairs`, the order in which the original writes them; and the pairs."""
    scores = torch.zeros(1, 1, targets, queries)
    for place, (query, target) in enumerate(pairs):
        scores[0, 0, target, query] = 1 + place
    return scores, scores > 0


@pytest.mark.parametrize("case", stored("quality_loss_deformable"))
def test_the_quality_loss_of_deformable_detr(case):
    logits = torch.tensor(case["logits"], requires_grad=True)
    count = max(len(case["labels"]), 1)
    quality = torch.zeros(count, len(logits))
    if case["labels"]:
        quality = torch.tensor(case["scores"])
    scores, paired = ascending(case["pairs"], count, len(logits))
    pairs = assignment_of(paired, scores)
    target = Target(torch.tensor(case["labels"], dtype=torch.int64), torch.full((len(case["labels"]), 4), 0.5))
    padded, num = PaddedTargets.of([target]), torch.tensor(float(case["num_gt"]))
    boxes = torch.full((1, 1, len(logits), 4), 0.5)

    inputs, scores = (logits[None, None], boxes, pairs, padded, num), quality[None, None]
    loss, _, _ = losses.set_losses(*inputs, losses.quality_focal, scores)
    check_loss(case, loss, logits)
    focal, _, _ = losses.set_losses(*inputs, losses.focal, scores)
    assert focal.item() == pytest.approx(case["focal_loss"], rel=1e-6)
    labels = labels_of(logits, pairs, padded, quality[pairs.targets, pairs.queries])
    np.testing.assert_allclose(labels.every[0, 0], case["target"], atol=1e-6)
    weight = 0.25 * torch.where(labels.positive[0, 0], 1.0, logits.detach().sigmoid() ** 1.5)
    np.testing.assert_allclose(weight, case["weight"], rtol=1e-5)


@pytest.mark.parametrize("case", stored("quality_loss_relation"))
def test_the_class_loss_of_relation_detr(case):
    logits, boxes = torch.tensor(case["logits"], requires_grad=True), torch.tensor(case["boxes"])
    target = Target(
        torch.tensor(case["labels"], dtype=torch.int64), torch.tensor(case["target_boxes"]).reshape(-1, 4)
    )
    padded, num = PaddedTargets.of([target]), torch.tensor(float(case["num_gt"]))
    scores, paired = ascending(case["pairs"], len(padded.labels[0]), len(logits))
    pairs = assignment_of(paired, scores)
    loss, _, _ = losses.set_losses(logits[None, None], boxes[None, None], pairs, padded, num, losses.varifocal)
    check_loss(case, loss, logits)


def check_loss(case, loss, logits):
    loss.sum().backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    np.testing.assert_allclose(logits.grad, case["gradient"], rtol=1e-5, atol=1e-7)


def labels_of(logits, pairs, targets, quality):
    return losses.Labels.of((1, 1, *logits.shape), pairs, targets.labels[pairs.images, pairs.targets], quality)


@pytest.mark.parametrize("case", stored("position_relation"))
def test_relations_of_boxes(case):
    relations = box_relations(torch.tensor(case["source"])[None], torch.tensor(case["target"])[None])[0]
    np.testing.assert_allclose(relations, case["encoding"], atol=1e-5, rtol=1e-5)
    features = sine_features(relations[0, 1] * SCALE, FEATURES).flatten()
    np.testing.assert_allclose(features, case["sine_of_pair_0_1"], atol=5e-4)


@pytest.mark.parametrize("case", stored("nms_evaluation"))
def test_detections_without_duplicates(case, golden):
    logits = torch.from_numpy(golden.bell("nms/logits", 5, (1, 120, 91))[0])
    low, span = np.float32([0.46, 0.46, 0.3, 0.3]), np.float32([0.08, 0.08, 0.08, 0.08])
    boxes = torch.from_numpy(golden.uniform("nms/boxes", 5, (1, 120, 4))[0] * span + low)
    found = detect(logits, boxes, tuple(case["size_h_w"]), case["topk"], nms_iou=case["iou_threshold"])
    np.testing.assert_allclose(found.scores, case["scores"], rtol=1e-6)
    np.testing.assert_allclose(found.pred_boxes.tensor, case["boxes_xyxy"], rtol=1e-5, atol=1e-3)
    assert found.pred_classes.tolist() == [label for _, label in case["kept"]]


def test_a_worked_relation():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]]])
    relations = box_relations(boxes, boxes)[0]
    torch.testing.assert_close(relations[0, 1], torch.tensor([0.6931, 0.2231, 0.6931, 1.3862]), atol=2e-4, rtol=0)
    torch.testing.assert_close(relations[1, 0], torch.tensor([1.0985, 0.6931, -0.6931, -1.3862]), atol=2e-4, rtol=0)


def test_a_worked_quality_loss():
    logits = torch.tensor([[[[0.5, -1.0, 2.0]]]])
    labels = losses.Labels(torch.tensor([[[[True, False, False]]]]), torch.tensor([[[[0.7, 0.0, 0.0]]]]))
    expected = torch.tensor([0.1560, 0.0109, 0.4395])
    torch.testing.assert_close(losses.quality_focal(logits, labels).flatten(), expected, atol=1e-4, rtol=0)
    focal = 0.25 * 0.3775**2 * math.log(1 / 0.6225)
    assert losses.focal(logits, labels)[0, 0, 0, 0].item() == pytest.approx(focal, rel=1e-3)
