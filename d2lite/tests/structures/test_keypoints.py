import pytest
import torch
from detectron2.structures import Keypoints


def test_containers():
    keypoints = Keypoints(torch.rand(3, 17, 3))
    assert len(keypoints[1:]) == 2 and len(keypoints[torch.tensor([True, False, True])]) == 2
    assert len(Keypoints.cat([keypoints, keypoints[:1]])) == 4
    with pytest.raises(AssertionError):
        Keypoints(torch.rand(17, 3))
