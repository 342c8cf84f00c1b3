"""Samplers that know of other processes.

Training samplers are endless. All processes draw the same sequence from a generator of their own and take every
world-size-th element of it, so no two see the same sample at a time and nothing needs to be communicated.
"""
import itertools
import logging
import math
from collections import Counter
from typing import Iterator, Sequence

import torch
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler):
    """This process's share of an endless sequence of epochs, from a generator of its own.

    `seed` must be the same on all processes; None is a random one, agreed on by all.
    """

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle, self._seed = shuffle, _shared_seed(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._get_epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()


def _shared_seed(seed: int | None) -> int:
    return comm.shared_random_seed() if seed is None else int(seed)


class TrainingSampler(_EndlessSampler):
    """One permutation of `range(size)` after another; without `shuffle` 0, 1, ..., size - 1, 0, 1, ..."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler needs an int as size, got {type(size).__name__}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler needs a dataset that is not empty, got size {size}.")
        super().__init__(shuffle, seed)
        self._size = size

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """`TrainingSampler` over a random subset that is fixed once, the share `subset_ratio` in (0, 1]."""

    def __init__(
        self, size: int, subset_ratio: float, shuffle: bool = True, seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must lie in (0, 1], got {subset_ratio}."
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0, f"A share of {subset_ratio} of {size} samples leaves none."
        generator = torch.Generator().manual_seed(_shared_seed(seed_subset))
        self._indexes_subset = torch.randperm(size, generator=generator)[: self._size_subset]
        logger.info(f"Training on a random subset of {self._size_subset} of {size} samples.")

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return self._indexes_subset


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Shows sample i about `repeat_factors[i]` times an epoch (Gupta et al., LVIS, 2019, section 6).

    The integer part of the (N,) factors is certain, the fraction is a probability drawn anew each epoch.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        super().__init__(shuffle, seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """(N,) factors: that of the rarest class in the image, 1 for an image without annotations.

        A class that occurs in the share f of all images has max(1, sqrt(repeat_thresh / f)), or without the root.
        """
        classes = [{annotation["category_id"] for annotation in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(classes))

        def factor(category: int) -> float:
            ratio = repeat_thresh * len(classes) / images_with[category]
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        by_class = {category: factor(category) for category in images_with}
        for category, value in sorted(by_class.items()):
            if value > 1:
                logger.info(f"The {images_with[category]} images with class {category} count {value:.2f} times.")
        return torch.tensor([max((by_class[c] for c in found), default=1.0) for found in classes], dtype=torch.float32)

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one epoch, ascending, rounded up or down at random."""
        extra = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = self._int_part.long() + extra.long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler):
    """Every index once over all processes: contiguous shards, the first ones longer where the size does not divide."""

    def __init__(self, size: int):
        assert size >= 0, f"A dataset cannot have {size} samples."
        self._size = size
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, left = divmod(total_size, world_size)
        begin = rank * share + min(rank, left)
        return range(begin, begin + share + (rank < left))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
