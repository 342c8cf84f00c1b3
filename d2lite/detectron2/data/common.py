"""Datasets made of others: a list in shared memory, a mapped one, an iterable one, one grouped by aspect ratio."""
import contextlib
import logging
import pickle
import random
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import torch
import torch.utils.data as torchdata
from torch.utils.data.sampler import Sampler

from detectron2.utils.serialize import PicklableWrapper

logger = logging.getLogger(__name__)


def _shard_iterator_dataloader_worker(iterable: Iterable, chunk_size: int = 1) -> Iterator:
    """The share of this DataLoader worker: chunks of `chunk_size` elements, dealt to the workers in turn."""
    info = torchdata.get_worker_info()
    if info is None or info.num_workers == 1:
        yield from iterable
        return
    for position, element in enumerate(iterable):
        if (position // chunk_size) % info.num_workers == info.id:
            yield element


class _MapIterableDataset(torchdata.IterableDataset):
    """An iterable dataset with a function applied; elements for which it gives None are left out."""

    def __init__(self, dataset: Iterable, map_func: Callable):
        self._dataset, self._map_func = dataset, PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator:
        return (mapped for mapped in map(self._map_func, self._dataset) if mapped is not None)


class MapDataset(torchdata.Dataset):
    """A dataset with a function applied to every element, lazily.

    Where the function gives None ("cannot use this one"), a map-style dataset gives another, randomly chosen element,
    or ValueError when all were refused; an iterable dataset, with which the result is iterable too, skips it.
    """

    def __new__(cls, dataset, map_func):
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self):
        return self._dataset, self._map_func

    def __init__(self, dataset: torchdata.Dataset, map_func: Callable):
        self._dataset, self._map_func = dataset, PicklableWrapper(map_func)  # lambdas must reach spawned workers
        self._rng, self._failed = random.Random(42), set()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current, retries = int(idx), 0
        while True:
            mapped = self._map_func(self._dataset[current])
            if mapped is not None:
                self._failed.discard(current)
                return mapped
            self._failed.add(current)
            retries += 1
            candidates = [i for i in range(len(self)) if i not in self._failed]
            if not candidates:
                raise ValueError(f"The mapping function returned None for all {len(self)} elements; none can be used.")
            if retries >= 3:
                logger.warning(f"The mapping function returned None {retries} times in a row, first for element {idx}.")
            current = self._rng.sample(candidates, k=1)[0]


class _TorchSerializedList:
    """A list pickled element by element into one uint8 tensor, whose pages forked workers share: the reference counts
    of a list of Python objects would copy them all."""

    def __init__(self, lst: list):
        parts = [np.frombuffer(pickle.dumps(x, protocol=-1), dtype=np.uint8) for x in lst]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in parts], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8))
        logger.info(f"Serialized {len(lst)} records into {len(self._bytes) / 2**20:.2f} MiB.")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        end = self._ends[idx].item()  # raises IndexError past the end, which ends a for loop
        begin = 0 if idx in (0, -len(self)) else self._ends[idx - 1].item()
        return pickle.loads(memoryview(self._bytes[begin:end].numpy()))


_DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]):
    """Within the `with`, `DatasetFromList(serialize=True)` stores its list as `new(list)`."""
    global _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD
    old, _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD = _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD, new
    try:
        yield
    finally:
        _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD = old


class DatasetFromList(torchdata.Dataset):
    """A list as a dataset, by default serialised into one tensor of pickles, or stored as `serialize(lst)`.

    `copy` gives a deep copy at every access; a serialised element is a fresh object anyway.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True):
        self._copy = copy
        if not isinstance(serialize, bool) and not callable(serialize):
            raise TypeError(f"serialize must be True, False or a callable, got {serialize!r}.")
        self._serialized = bool(serialize)
        method = _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD if serialize is True else serialize
        self._lst = method(lst) if self._serialized else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        if self._copy and not self._serialized:
            # A pickle round trip is what the serialised kind does; it is also faster than copy.deepcopy.
            return pickle.loads(pickle.dumps(element, protocol=-1))
        return element


class ToIterableDataset(torchdata.IterableDataset):
    """A map-style dataset walked in a sampler's order.

    Args:
        sampler: gives indices. It must give the same ones in every DataLoader worker (a seeded generator of its own).
        shard_sampler: deal the indices out to the workers; False if the sampler does it already.
        shard_chunk_size: workers take turns after so many indices. The batch size, when the DataLoader makes batches:
            then every batch holds consecutive indices and their order does not depend on the number of workers.
    """

    def __init__(self, dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1):
        assert not isinstance(dataset, torchdata.IterableDataset), "This dataset is iterable already."
        assert isinstance(sampler, Sampler), f"A torch Sampler is needed, got {type(sampler).__name__}."
        self.dataset, self.sampler = dataset, sampler
        self.shard_sampler, self.shard_chunk_size = shard_sampler, shard_chunk_size

    def __iter__(self) -> Iterator:
        order = self.sampler
        if self.shard_sampler:
            order = _shard_iterator_dataloader_worker(order, self.shard_chunk_size)
        return (self.dataset[idx] for idx in order)

    def __len__(self) -> int:
        return len(self.sampler)


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches (lists) of records that are all wider than high, or all not, so that little padding is needed.

    `dataset` is an iterable of dicts with "width" and "height" (of the record, not of the augmented image). What does
    not fill a batch when it ends is not given.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for record in self.dataset:
            kind = int(record["width"] <= record["height"])
            self._buckets[kind].append(record)
            if len(self._buckets[kind]) == self.batch_size:
                # Emptied before the yield: a consumer may stop here and iterate anew.
                batch, self._buckets[kind] = self._buckets[kind], []
                yield batch
