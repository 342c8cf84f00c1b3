"""Batches of indices that belong to one group."""
from collections import defaultdict
from typing import Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Collects a sampler's indices by group and gives a batch as soon as a group has filled one.

    `group_ids` has the group of every index. A group that has not filled one when the sampler ends is not given.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int):
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {type(sampler).__name__}.")
        self.sampler, self.group_ids, self.batch_size = sampler, list(group_ids), batch_size

    def __iter__(self) -> Iterator[list[int]]:
        collected: dict[int, list[int]] = defaultdict(list)
        for idx in self.sampler:
            group = self.group_ids[idx]
            collected[group].append(idx)
            if len(collected[group]) == self.batch_size:
                yield collected.pop(group)

    def __len__(self) -> int:
        raise NotImplementedError("How many batches there are depends on the sampler and on the groups.")
