import pytest
import torch

from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks


def results(**fields):
    boxes = torch.tensor([[10.0, 10, 50, 60], [150, 80, 260, 130], [5, 5, 5, 9]])
    return Instances((100, 200), pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.8, 0.7]), **fields)


def test_boxes_are_scaled_clipped_and_dropped():
    given = results()
    output = detector_postprocess(given, 50, 400)
    assert output.image_size == (50, 400)
    assert output.pred_boxes.tensor.tolist() == [[20, 5, 100, 30], [300, 40, 400, 50]]
    assert torch.equal(output.scores, torch.tensor([0.9, 0.8]))
    # the caller's boxes have changed with them
    assert len(given) == 3 and given.pred_boxes.tensor[0].tolist() == [20, 5, 100, 30]


def test_proposals():
    proposals = Instances((100, 200), proposal_boxes=Boxes(torch.tensor([[10.0, 10, 50, 60]])))
    assert detector_postprocess(proposals, 50, 400).proposal_boxes.tensor.tolist() == [[20, 5, 100, 30]]


def test_without_boxes():
    with pytest.raises(AssertionError):
        detector_postprocess(Instances((4, 4), scores=torch.ones(1)), 2, 2)


@pytest.mark.parametrize("wrap", [lambda masks: masks[:, None], ROIMasks])
def test_masks_are_pasted_into_their_boxes(wrap):
    masks = torch.zeros(3, 4, 4)
    masks[:, :, :2] = 1  # the left half of each box
    given = results(pred_masks=wrap(masks))
    output = detector_postprocess(given, 100, 200)
    assert output.pred_masks.dtype == torch.bool
    assert tuple(output.pred_masks.shape) == (2, 100, 200)
    mask = output.pred_masks[0]
    assert mask[14:56, 13:28].all()  # bilinear sampling rounds corners and moves borders
    assert not mask[:10].any() and not mask[60:].any() and not mask[:, :10].any() and not mask[:, 30:].any()


def test_keypoints():
    keypoints = torch.ones(3, 5, 3)
    output = detector_postprocess(results(pred_keypoints=keypoints), 50, 400)
    assert output.pred_keypoints[0, 0].tolist() == [2, 0.5, 1]


def test_sem_seg_is_cropped_then_resized():
    logits = torch.full((2, 12, 16), 9.0)
    logits[:, :10, :14] = torch.arange(2.0)[:, None, None]
    resized = sem_seg_postprocess(logits, (10, 14), 20, 28)
    assert tuple(resized.shape) == (2, 20, 28)
    assert torch.equal(resized[1], torch.ones(20, 28)) and not resized[0].any()
