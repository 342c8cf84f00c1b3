"""From predictions to instances: classes, frames, thresholds, duplicates."""
import pytest
import torch

from lowrank_d2.modeling.coco_labels import COCO_IDS, label_of_class, num_labels
from yolos.decode import DecodeOptions, decode
from yolos.fusion import fuse_boxes


def logits_of(rows, labels=4):
    """[(label, probability)] -> (rows, labels + 1) logits whose softmax gives label that probability."""
    result = torch.full((len(rows), labels + 1), 1e-12)
    for row, (label, probability) in zip(result, rows):
        row[label], row[-1] = probability, 1 - probability
    return result.log()


TWO = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.32, 0.3, 0.4, 0.4]])
ALL_CLASSES = torch.arange(4)


def test_cocos_labels():
    assert len(COCO_IDS) == 80 and COCO_IDS[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13) and COCO_IDS[-1] == 90
    assert num_labels(80, True) == 91 and label_of_class(80, True) == COCO_IDS
    assert num_labels(80, False) == 80 and label_of_class(3, True) == (0, 1, 2) and num_labels(3, True) == 3


def test_cocos_labels_are_those_of_detectron2s_metadata():
    from detectron2.data import MetadataCatalog

    mapping = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    assert label_of_class(80, True) == tuple(sorted(mapping, key=mapping.get))


def test_boxes_scores_and_classes_of_an_image():
    logits, classes = logits_of([(1, 0.6), (2, 0.9)]), torch.tensor([3, 2, 1, 0])
    result = decode(logits, TWO, classes, (50, 100), (50, 100), DecodeOptions())
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.6]))
    assert result.pred_classes.tolist() == [1, 2] and result.image_size == (50, 100)
    torch.testing.assert_close(result.pred_boxes.tensor, torch.tensor([[12.0, 5, 52, 25], [10, 5, 50, 25]]))


def test_labels_without_a_class_are_dropped_after_the_choice():
    logits = logits_of([(0, 0.6)])
    logits[0, 1] = torch.tensor(0.3).log()  # the second best has a class, but the token answered otherwise
    result = decode(logits, TWO[:1], torch.tensor([-1, 0, 1, 2]), (9, 9), (9, 9), DecodeOptions())
    assert len(result) == 0


def test_threshold_and_limit():
    logits, boxes = logits_of([(0, p / 10) for p in range(1, 9)]), TWO[:1].expand(8, 4)
    kept = decode(logits, boxes, ALL_CLASSES, (9, 9), (9, 9), DecodeOptions(score_threshold=0.35))
    torch.testing.assert_close(kept.scores, torch.tensor([0.8, 0.7, 0.6, 0.5, 0.4]))
    assert len(decode(logits, boxes, ALL_CLASSES, (9, 9), (9, 9), DecodeOptions(max_detections=3))) == 3


@pytest.mark.parametrize("duplicates, scores", [("keep", [0.9, 0.6, 0.5]), ("nms", [0.9, 0.5]), ("wbf", [0.9, 0.5])])
def test_duplicates_within_a_class(duplicates, scores):
    logits = logits_of([(1, 0.9), (1, 0.6), (2, 0.5)])
    options = DecodeOptions(duplicates=duplicates, duplicates_iou=0.55)
    result = decode(logits, torch.cat((TWO, TWO[:1])), ALL_CLASSES, (100, 100), (100, 100), options)
    torch.testing.assert_close(result.scores, torch.tensor(scores))
    first = {"keep": 10.0, "nms": 10.0, "wbf": 10.8}[duplicates]
    assert result.pred_boxes.tensor[0, 0].item() == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("score, expected", [("avg", 0.75), ("max", 0.9)])
def test_fusing_two_boxes(score, expected):
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.52, 0.5]])
    fused, scores, classes = fuse_boxes(boxes, torch.tensor([0.9, 0.6]), torch.tensor([7, 7]), 0.55, score)
    torch.testing.assert_close(fused, torch.tensor([[0.108, 0.1, 0.508, 0.5]]))
    assert scores.item() == pytest.approx(expected) and classes.tolist() == [7]


def test_the_mean_moves_and_decides_what_joins():
    # The third box overlaps the first by 1/2 and the mean of the first two by more.
    boxes = torch.tensor([[0.0, 0, 0.6, 1], [0.1, 0, 0.7, 1], [0.2, 0, 0.8, 1]])
    scores = torch.tensor([0.5, 0.49, 0.1])
    assert len(fuse_boxes(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.55, "max")[1]) == 1
    assert len(fuse_boxes(boxes[[0, 2]], scores[:2], torch.zeros(2, dtype=torch.int64), 0.55, "max")[1]) == 2


def test_an_overlap_of_exactly_the_limit_does_not_join():
    boxes = torch.tensor([[0.0, 0, 0.5, 1], [0.0, 0, 1.0, 1]])
    args = (boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64))
    assert len(fuse_boxes(*args, 0.5, "max")[1]) == 2 and len(fuse_boxes(*args, 0.499, "max")[1]) == 1


def test_odd_boxes_are_put_right_or_dropped():
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [-0.2, 0.0, 0.3, 1.4], [0.2, 0.2, 0.2, 0.9], [1.2, 0.1, 1.5, 0.3]])
    fused, scores, _ = fuse_boxes(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 2, 3]), 0.55, "max")
    torch.testing.assert_close(fused, torch.tensor([[0.1, 0.1, 0.5, 0.5], [0, 0, 0.3, 1]]))
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.8]))
    empty = torch.zeros(0)
    assert len(fuse_boxes(boxes[:0], empty, empty.long(), 0.55, "avg")[0]) == 0
