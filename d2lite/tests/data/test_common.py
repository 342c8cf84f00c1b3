import itertools
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
    set_default_dataset_from_list_serialize_method,
)
from detectron2.data.samplers import InferenceSampler, TrainingSampler


class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(5)


def first(batch):
    return batch[0]


class TestDatasetFromList:
    @pytest.mark.parametrize("serialize", [True, False])
    def test_every_access_gives_a_fresh_object(self, serialize):
        dataset = DatasetFromList([{"a": [1]}, {"a": [2]}], serialize=serialize)
        dataset[1]["a"].append(3)
        assert dataset[1] == {"a": [2]}
        assert len(dataset) == 2
        assert [x["a"][0] for x in dataset] == [1, 2]

    def test_without_copy_and_serialization(self):
        record = {"a": 1}
        assert DatasetFromList([record], copy=False, serialize=False)[0] is record

    def test_other_storage(self):
        assert torch.equal(DatasetFromList([1, 2], serialize=torch.tensor)[1], torch.tensor(2))
        with pytest.raises(ZeroDivisionError), set_default_dataset_from_list_serialize_method(tuple):
            assert DatasetFromList([[1], [2]])._lst == ([1], [2])
            raise ZeroDivisionError
        assert DatasetFromList([3])[0] == 3


class TestMapDataset:
    def test_replaces_what_the_function_refuses(self):
        dataset = MapDataset([0, 1, 2, 3], lambda x: x * 10 if x % 2 else None)
        assert dataset[1] == 10
        assert {dataset[0] for _ in range(20)} == {10, 30}
        assert len(dataset) == 4

    def test_everything_refused(self):
        with pytest.raises(ValueError):
            MapDataset([1, 2], lambda x: None)[0]

    def test_iterable_skips(self):
        dataset = MapDataset(Numbers(), lambda x: x * 2 if x > 2 else None)
        assert isinstance(dataset, IterableDataset)
        assert list(dataset) == [6, 8]

    def test_pickles_lambdas(self):
        for source in (DatasetFromList([1, 2]), Numbers()):
            again = pickle.loads(pickle.dumps(MapDataset(source, lambda x: x + 1)))
            assert list(itertools.islice(again, 2)) == list(itertools.islice(MapDataset(source, lambda x: x + 1), 2))


class TestToIterableDataset:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_do_not_depend_on_the_workers(self, workers):
        dataset = ToIterableDataset(DatasetFromList(list(range(11))), InferenceSampler(11), shard_chunk_size=2)
        loader = DataLoader(dataset, batch_size=2, num_workers=workers)
        assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
        assert len(dataset) == 11

    def test_unsharded_workers_repeat(self):
        dataset = ToIterableDataset([5, 6], InferenceSampler(2), shard_sampler=False)
        assert sorted(DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=first)) == [5, 5, 6, 6]

    def test_needs_a_map_style_dataset_and_a_sampler(self):
        with pytest.raises(AssertionError):
            ToIterableDataset(Numbers(), InferenceSampler(5))
        with pytest.raises(AssertionError):
            ToIterableDataset([1, 2], [0, 1])


class TestAspectRatioGrouping:
    RECORDS = [{"width": w, "height": h, "i": i} for i, (w, h) in enumerate([(2, 1), (1, 2), (3, 1), (1, 1), (4, 1)])]

    def test_wide_and_others_apart(self):
        batches = list(AspectRatioGroupedDataset(self.RECORDS, 2))
        assert [[record["i"] for record in batch] for batch in batches] == [[0, 2], [1, 3]]

    def test_iterating_again_after_a_break(self):
        dataset = AspectRatioGroupedDataset(self.RECORDS, 2)
        for _ in range(3):
            assert len(next(iter(dataset))) == 2

    def test_over_a_training_sampler(self):
        source = ToIterableDataset(self.RECORDS, TrainingSampler(5, seed=0))
        for batch in itertools.islice(AspectRatioGroupedDataset(source, 3), 10):
            assert len({record["width"] > record["height"] for record in batch}) == 1
