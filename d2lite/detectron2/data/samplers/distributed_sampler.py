"""Samplers that know of other processes.

Training samplers are endless. All processes draw the same sequence from a generator of their own and take every
world-size-th element of it, so no two processes see the same sample at a time and nothing needs to be communicated.
"""
from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from typing import Iterator, Sequence

import torch
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


def _shared_seed(seed: int | None) -> int:
    return comm.shared_random_seed() if seed is None else int(seed)


class TrainingSampler(Sampler):
    """One permutation of `range(size)` after another, for ever.

    Args:
        size: number of samples, positive.
        shuffle: False for 0, 1, ..., size - 1, 0, 1, ...
        seed: the same on all processes. None: a random one, agreed on by all.

    Raises:
        TypeError: size is not an int. ValueError: size is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler needs an int as size, got {type(size).__name__}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler needs a dataset that is not empty, got size {size}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self._seed)
        while True:
            yield from torch.randperm(self._size, generator=g).tolist() if self._shuffle else range(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """`TrainingSampler` over a random subset that is fixed once.

    Args:
        size: number of samples of the whole dataset.
        subset_ratio: share of them to use, in (0, 1].
        seed_shuffle: of the order; seed_subset: of the choice. None: random, the same on all processes.
    """

    def __init__(
        self, size: int, subset_ratio: float, shuffle: bool = True, seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must lie in (0, 1], got {subset_ratio}."
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0, f"A share of {subset_ratio} of {size} samples leaves none."
        g = torch.Generator()
        g.manual_seed(_shared_seed(seed_subset))
        self._indexes_subset = torch.randperm(size, generator=g)[: self._size_subset]
        logger.info(f"Training on a random subset of {self._size_subset} of {size} samples.")

    def _infinite_indices(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self._seed)
        while True:
            order = torch.randperm(self._size_subset, generator=g) if self._shuffle else slice(None)
            yield from self._indexes_subset[order].tolist()


class RepeatFactorTrainingSampler(Sampler):
    """Shows sample i about `repeat_factors[i]` times an epoch (Gupta et al., LVIS, 2019, section 6).

    The integer part is certain, the fraction is a probability drawn anew each epoch.

    Args:
        repeat_factors: (N,) float tensor.
        shuffle: False keeps the epoch's indices ascending.
        seed: as for `TrainingSampler`.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
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

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self._seed)
        while True:
            indices = self._get_epoch_indices(g)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=g)]
            yield from indices.tolist()


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
