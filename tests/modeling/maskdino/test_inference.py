from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.modeling.maskdino import inference
from lowrank_d2.modeling.maskdino.inference import Frame, InferenceOptions, image_results, mean_inside
from lowrank_d2.modeling.predictions import Prediction

FRAME = Frame(canvas=(32, 48), image=(30, 40), output=(60, 80))
QUERIES, CLASSES, CHANNELS = 9, 4, 6


def prediction(columns=CLASSES):
    torch.manual_seed(0)
    return Prediction(
        2 * torch.randn(1, QUERIES, columns), torch.rand(1, QUERIES, 4), torch.randn(1, QUERIES, CHANNELS)
    ), torch.randn(1, CHANNELS, 8, 12)


def all_masks(single, features):
    """The masks (Q, height, width) of the wanted result, by the plain formula."""
    masks = F.interpolate(single.mask_logits(features), FRAME.canvas, mode="bilinear", align_corners=False)
    masks = masks[:, :, : FRAME.image[0], : FRAME.image[1]]
    return F.interpolate(masks, FRAME.output, mode="bilinear", align_corners=False)[0]


def results(options, columns=CLASSES, frame=FRAME):
    single, features = prediction(columns)
    return image_results(single, 0, features, frame, options)


@pytest.mark.parametrize("pixels", [1, 3 * 60 * 80, 2**21])
def test_instances_are_the_best_pairs_with_mask_quality(monkeypatch, pixels):
    monkeypatch.setattr(inference, "PIXELS_AT_ONCE", pixels)
    single, features = prediction()
    found = results(InferenceOptions(num_classes=CLASSES, max_instances=20))["instances"]
    scores, pairs = single.logits[0].sigmoid().flatten().topk(20)
    masks = all_masks(single, features)
    for i, (score, pair) in enumerate(zip(scores, pairs.tolist())):
        query, label = divmod(pair, CLASSES)
        mask = masks[query] > 0
        quality = masks[query].sigmoid()[mask].sum() / (mask.sum() + 1e-6)
        assert found.pred_classes[i] == label
        assert torch.equal(found.pred_masks[i], mask)
        torch.testing.assert_close(found.scores[i], score * quality)
        cx, cy, w, h = single.boxes[0, query]
        corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        torch.testing.assert_close(found.pred_boxes.tensor[i], corners * torch.tensor([96.0, 64.0, 96.0, 64.0]))
    assert found.image_size == (60, 80) and found.pred_masks.dtype == torch.bool


def test_mask_quality_counts_pixels_whose_probability_rounds_to_a_half():
    logits = torch.tensor([[[1e-9, 3.0, 0.0, -1e-9, -2.0]], [[-1.0, -2.0, 0.0, -1e-9, -3.0]]])
    quality = mean_inside(logits, logits > 0)
    torch.testing.assert_close(quality, torch.tensor([(0.5 + torch.tensor(3.0).sigmoid()) / 2, 0.0]))


def test_scores_without_mask_quality():
    found = results(InferenceOptions(num_classes=CLASSES, max_instances=5, mask_quality=False))["instances"]
    torch.testing.assert_close(found.scores, prediction()[0].logits.sigmoid().flatten().topk(5).values)


def test_more_instances_than_pairs_gives_all_pairs():
    assert len(results(InferenceOptions(num_classes=CLASSES, max_instances=1000))["instances"]) == QUERIES * CLASSES


def test_only_things_become_instances_and_nothing_never_does():
    options = InferenceOptions(num_classes=CLASSES, max_instances=QUERIES * CLASSES, thing_classes=(0, 2))
    assert set(results(options)["instances"].pred_classes.tolist()) == {0, 2}
    classes = results(InferenceOptions(num_classes=CLASSES), columns=CLASSES + 1)["instances"].pred_classes
    assert classes.max() == CLASSES - 1


def test_an_empty_mask_has_score_zero():
    single, features = prediction()
    empty = replace(single, mask_embed=torch.zeros_like(single.mask_embed))
    found = image_results(empty, 0, features, FRAME, InferenceOptions(num_classes=CLASSES))["instances"]
    assert found.scores.abs().max() == 0 and not found.pred_masks.any()


@pytest.mark.parametrize("temperature, softmax", [(None, False), (0.06, False), (None, True), (0.06, True)])
def test_semantic_scores(temperature, softmax):
    options = InferenceOptions(
        num_classes=CLASSES, instance=False, semantic=True, temperature=temperature, softmax=softmax
    )
    columns = CLASSES + softmax
    single, features = prediction(columns)
    weights = single.logits[0].softmax(-1)[:, :-1] if softmax else single.logits[0].sigmoid()
    if temperature and not softmax:
        weights = (weights / temperature).softmax(-1)
    expected = torch.einsum("qc,qhw->chw", weights, all_masks(single, features).sigmoid())
    torch.testing.assert_close(results(options, columns)["sem_seg"], expected)


def test_semantic_scores_may_be_resized_last():
    options = InferenceOptions(num_classes=CLASSES, instance=False, semantic=True, resize_first=False)
    single, features = prediction()
    canvas = F.interpolate(single.mask_logits(features), FRAME.canvas, mode="bilinear", align_corners=False).sigmoid()
    scores = torch.einsum("qc,qhw->chw", single.logits[0].sigmoid(), canvas[0])[None, :, :30, :40]
    expected = F.interpolate(scores, FRAME.output, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(results(options)["sem_seg"], expected)


def blocks(labels, extents, scores):
    """A prediction whose masks are spans of columns of an 8 x 12 map, of the given classes and logits."""
    count = len(labels)
    features = torch.full((1, count, 8, 12), -20.0)
    for i, (low, high) in enumerate(extents):
        features[0, i, :, low:high] = 20.0
    logits = torch.full((1, count, CLASSES), -20.0)
    logits[0, torch.arange(count), torch.tensor(labels)] = torch.tensor(scores)
    return Prediction(logits, torch.rand(1, count, 4), torch.eye(count)[None]), features


def panoptic(given, things=(0, 1), **thresholds):
    options = InferenceOptions(
        num_classes=CLASSES,
        instance=False,
        panoptic=True,
        thing_classes=things,
        **{"object_threshold": 0.25, "overlap_threshold": 0.8, **thresholds},
    )
    frame = Frame((8, 12), (8, 12), (8, 12))
    return image_results(given[0], 0, given[1], frame, options)["panoptic_seg"]


def test_panoptic_pixels_go_to_the_best_query_and_stuff_is_merged():
    given = blocks([2, 0, 2, 1], [(0, 3), (3, 6), (6, 9), (9, 12)], [3.0, 3.0, 2.0, -3.0])
    segments_map, segments = panoptic(given)
    assert segments == [
        {"id": 1, "isthing": False, "category_id": 2},
        {"id": 2, "isthing": True, "category_id": 0},
    ]
    assert segments_map[0].tolist() == [1] * 3 + [2] * 3 + [1] * 3 + [0] * 3  # the last is below the object threshold
    assert segments_map.dtype == torch.int32


@pytest.mark.parametrize("pixels", [1, 2**21])
def test_a_segment_that_is_mostly_covered_is_dropped(monkeypatch, pixels):
    monkeypatch.setattr(inference, "PIXELS_AT_ONCE", pixels)
    given = blocks([0, 1], [(0, 8), (4, 10)], [3.0, 2.0])  # the second keeps 2 of its 6 columns
    segments_map, segments = panoptic(given)
    assert [s["category_id"] for s in segments] == [0] and segments_map[0].tolist() == [1] * 8 + [0] * 4
    assert [s["category_id"] for s in panoptic(given, overlap_threshold=0.3)[1]] == [0, 1]


def test_nothing_above_the_threshold_gives_an_empty_map():
    segments_map, segments = panoptic(blocks([0], [(0, 8)], [3.0]), object_threshold=0.99)
    assert segments == [] and segments_map.abs().max() == 0


def test_a_query_that_is_surest_of_no_object_makes_no_segment():
    single, features = blocks([0, 1], [(0, 6), (6, 12)], [3.0, 3.0])
    no_object = torch.tensor([[[2.0], [4.0]]])
    given = replace(single, logits=torch.cat((single.logits, no_object), dim=2)), features
    segments_map, segments = panoptic(given)
    assert segments == [{"id": 1, "isthing": True, "category_id": 0}]
    assert segments_map[0].tolist() == [1] * 6 + [0] * 6
