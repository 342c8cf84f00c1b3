import pytest
from torch.utils.data import SequentialSampler

from detectron2.data.samplers import GroupedBatchSampler


def test_batches_are_given_as_they_fill():
    sampler = GroupedBatchSampler(SequentialSampler(range(7)), [0, 1, 1, 0, 1, 1, 0], 2)
    assert list(iter(sampler)) == [[1, 2], [0, 3], [4, 5]]


def test_needs_a_sampler():
    with pytest.raises(ValueError):
        GroupedBatchSampler([0, 1], [0, 0], 1)


def test_has_no_length():
    with pytest.raises((NotImplementedError, TypeError)):
        len(GroupedBatchSampler(SequentialSampler(range(4)), [0] * 4, 2))
