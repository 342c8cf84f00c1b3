import itertools
import math
from collections import Counter
from unittest import mock

import pytest
import torch

from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, count):
    return list(itertools.islice(iter(sampler), count))


class TestTrainingSampler:
    def test_known_orders(self):
        assert take(TrainingSampler(10, seed=42), 10) == [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
        assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]

    def test_every_epoch_is_a_new_permutation(self):
        first, second = take(TrainingSampler(20, seed=1), 20), take(TrainingSampler(20, seed=1), 40)[20:]
        assert sorted(first) == sorted(second) == list(range(20))
        assert first != second

    def test_iterating_again_begins_anew(self):
        sampler = TrainingSampler(9)
        assert take(sampler, 12) == take(sampler, 12)

    def test_processes_share_the_sequence(self):
        alone = take(TrainingSampler(7, seed=3), 14)
        for rank in range(2):
            with mock.patch.multiple(comm, get_rank=lambda: rank, get_world_size=lambda: 2):
                assert take(TrainingSampler(7, seed=3), 7) == alone[rank::2]

    @pytest.mark.parametrize("size, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
    def test_bad_sizes(self, size, error):
        with pytest.raises(error):
            TrainingSampler(size)


class TestRandomSubset:
    def test_one_fixed_subset(self):
        sampler = RandomSubsetTrainingSampler(10, 0.45, seed_shuffle=0, seed_subset=1)
        counts = Counter(take(sampler, 40))
        assert len(counts) == 4
        assert set(counts.values()) == {10}
        again = RandomSubsetTrainingSampler(10, 0.45, seed_shuffle=5, seed_subset=1)
        assert set(take(again, 4)) == set(counts)

    @pytest.mark.parametrize("ratio", [0.0, 1.5, -1])
    def test_bad_ratio(self, ratio):
        with pytest.raises(AssertionError):
            RandomSubsetTrainingSampler(10, ratio)


class TestRepeatFactor:
    DICTS = [{"annotations": [{"category_id": c} for c in found]} for found in [(0, 1), (0,), (), (0,)]]

    def test_factors(self):
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        # Class 0 is in 3 of 4 images, class 1 in one.
        assert factors(self.DICTS, 0.5).tolist() == pytest.approx([math.sqrt(2), 1, 1, 1])
        assert factors(self.DICTS, 0.5, sqrt=False).tolist() == pytest.approx([2, 1, 1, 1])
        assert factors(self.DICTS, 1.0, sqrt=False).tolist() == pytest.approx([4, 4 / 3, 1, 4 / 3])

    def test_whole_factors_are_certain(self):
        epoch = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0]), seed=0), 4)
        assert Counter(epoch) == {0: 1, 1: 3}
        assert take(RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0]), shuffle=False, seed=0), 4) == [0, 1, 1, 1]

    def test_fractions_are_probabilities(self):
        counts = Counter(take(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.25]), seed=0), 9000))
        assert counts[1] / counts[0] == pytest.approx(1.25, abs=0.03)


class TestInferenceSampler:
    @pytest.mark.parametrize("size, world", [(0, 3), (2, 3), (10, 3), (12, 4)])
    def test_every_index_once_in_order(self, size, world):
        shards = [InferenceSampler._get_local_indices(size, world, rank) for rank in range(world)]
        assert list(itertools.chain.from_iterable(shards)) == list(range(size))
        lengths = [len(shard) for shard in shards]
        assert lengths == sorted(lengths, reverse=True) and max(lengths) - min(lengths) <= 1

    def test_alone(self):
        assert list(InferenceSampler(4)) == [0, 1, 2, 3]
        assert len(InferenceSampler(4)) == 4
