import pytest
import torch
from detectron2.structures import Boxes, Instances


@pytest.fixture
def instances():
    scores, boxes = torch.tensor([0.1, 0.2, 0.3]), Boxes(torch.rand(3, 4))
    return Instances((10, 20), scores=scores, boxes=boxes, names=["a", "b", "c"])


def test_fields(instances):
    assert instances.image_size == (10, 20) and len(instances) == 3
    assert instances.has("scores") and not instances.has("masks")
    assert set(instances.get_fields()) == {"scores", "boxes", "names"}
    instances.extra = [1, 2, 3]
    assert instances.get("extra") == [1, 2, 3]
    instances.get_fields()["live"] = [0, 0, 0]
    assert instances.live == [0, 0, 0]
    instances.remove("live")
    with pytest.raises(AttributeError, match="live"):
        instances.live


def test_lengths_must_agree(instances):
    with pytest.raises(AssertionError):
        instances.extra = [1, 2]
    with pytest.raises(AssertionError):
        instances.scores = torch.zeros(2)


def test_int_index_selects_one(instances):
    assert instances[1].names == ["b"] and instances[-1].scores.tolist() == pytest.approx([0.3])
    for index in (3, -4):
        with pytest.raises(IndexError):
            instances[index]


def test_slices_and_masks(instances):
    assert instances[1:].names == ["b", "c"]
    instances.remove("names")
    chosen = instances[instances.scores > 0.15]
    assert len(chosen) == 2 and len(chosen.boxes) == 2 and chosen.image_size == (10, 20)


def test_lists_do_not_take_tensors(instances):
    with pytest.raises(TypeError):
        instances[torch.tensor([True, False, True])]


def test_without_fields():
    empty = Instances((1, 1))
    with pytest.raises(NotImplementedError):
        len(empty)
    with pytest.raises(NotImplementedError):
        iter(empty)


def test_to(instances):
    moved = instances.to(torch.device("cpu"))
    assert moved.names == ["a", "b", "c"] and moved is not instances


def test_cat(instances):
    joined = Instances.cat([instances, instances[:1]])
    assert joined.names == ["a", "b", "c", "a"] and len(joined.boxes) == 4
    assert Instances.cat([instances]) is instances
    with pytest.raises(AssertionError):
        Instances.cat([])
    with pytest.raises(AssertionError):
        Instances.cat([instances, Instances((5, 5), **instances.get_fields())])
    odd = Instances((1, 1), text="abc")
    with pytest.raises(ValueError):
        Instances.cat([odd, odd])


def test_text(instances):
    text = str(instances)
    assert text.startswith("Instances(num_instances=3, image_height=10, image_width=20, fields=[scores: tensor([")
