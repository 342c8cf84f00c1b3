import pytest
import torch
from omegaconf import OmegaConf

from detectron2.structures import Boxes, Instances, ROIMasks
from detectron2.utils.testing import assert_instances_allclose, random_boxes, reload_lazy_config


def instances(value=1.0, size=(4, 5)):
    return Instances(
        size, boxes=Boxes(torch.ones(2, 4)), scores=torch.full((2,), value), masks=ROIMasks(torch.ones(2, 3, 3))
    )


def test_random_boxes_are_boxes():
    torch.manual_seed(0)
    boxes = random_boxes(200, max_coord=50)
    assert boxes.shape == (200, 4)
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
    assert boxes.min() >= 1 and boxes.max() <= 50
    torch.manual_seed(0)
    assert random_boxes(1)[0].tolist() == pytest.approx([24.8128, 38.4111, 29.2367, 45.0126], abs=1e-4)


def test_instances_allclose():
    assert_instances_allclose(instances(), instances())
    assert_instances_allclose(instances(), instances(1 + 1e-6))
    with pytest.raises(AssertionError, match="here"):
        assert_instances_allclose(instances(), instances(1.1), msg="here")
    with pytest.raises(AssertionError):
        assert_instances_allclose(instances(), instances(size=(5, 4)))
    with pytest.raises(AssertionError):
        assert_instances_allclose(instances(), Instances((4, 5)))
    assert_instances_allclose(
        Instances(torch.tensor([4, 5])), Instances(torch.tensor([4, 5])), size_as_tensor=True
    )
    with pytest.raises(ValueError):
        assert_instances_allclose(Instances((4, 5), names=["a"]), Instances((4, 5), names=["a"]))


def test_reload_lazy_config():
    config = OmegaConf.create({"a": {"b": [1, 2]}})
    assert reload_lazy_config(config) == config
