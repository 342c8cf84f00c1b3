import itertools
import logging

import pytest
import torch
from torch.utils.data import IterableDataset

import detectron2
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.build import filter_images_with_few_keypoints
from detectron2.data.samplers import InferenceSampler, RandomSubsetTrainingSampler, TrainingSampler

is_lite = getattr(detectron2, "__runtime__", None) == "lite"
mended = pytest.mark.skipif(not is_lite, reason="a defect of Detectron2 that the lite runtime mends")


def annotation(category=0, iscrowd=0, **more):
    return {"category_id": category, "iscrowd": iscrowd, "bbox": [0, 0, 1, 1], **more}


RECORDS = [
    {"i": 0, "width": 2, "height": 1, "annotations": [annotation(0)]},
    {"i": 1, "width": 1, "height": 2, "annotations": []},
    {"i": 2, "width": 1, "height": 2, "annotations": [annotation(1), annotation(1, iscrowd=1)]},
    {"i": 3, "width": 2, "height": 1, "annotations": [annotation(1, iscrowd=1)]},
]


class Endless(IterableDataset):
    def __iter__(self):
        yield from itertools.count()


@pytest.fixture
def registered():
    def register(name, records, classes=("a", "b")):
        DatasetCatalog.register(name, lambda: records)
        if classes:
            MetadataCatalog.get(name).thing_classes = list(classes)
        names.append(name)
        return name

    names = []
    yield register
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


def identity(x):
    return x


def numbers(loader, count):
    return [[record["i"] for record in batch] for batch in itertools.islice(loader, count)]


class TestDicts:
    def test_images_without_annotations(self, registered):
        name = registered("test_build", RECORDS)
        assert [d["i"] for d in get_detection_dataset_dicts(name)] == [0, 2]
        assert len(get_detection_dataset_dicts([name], filter_empty=False)) == 4
        assert len(get_detection_dataset_dicts([name, name], filter_empty=False)) == 8

    def test_unlabelled_datasets_are_not_filtered(self, registered):
        name = registered("test_build", [{"i": 0}, {"i": 1}], classes=None)
        assert len(get_detection_dataset_dicts(name)) == 2

    def test_empty(self, registered):
        with pytest.raises(AssertionError):
            get_detection_dataset_dicts([])
        with pytest.raises(AssertionError, match="test_build"):
            get_detection_dataset_dicts(registered("test_build", []))
        with pytest.raises(AssertionError):
            get_detection_dataset_dicts(registered("test_build_crowds", RECORDS[3:]))

    def test_classes_must_agree(self, registered):
        names = [registered("test_build", RECORDS), registered("test_build_2", RECORDS, classes=("a", "c"))]
        with pytest.raises(ValueError):
            get_detection_dataset_dicts(names)
        assert len(get_detection_dataset_dicts(names, check_consistency=False)) == 4

    def test_keypoints(self):
        records = [{"annotations": [annotation(keypoints=[1, 1, 2, 1, 1, 0]), annotation()]}, {"annotations": []}]
        assert filter_images_with_few_keypoints(records, 1) == records[:1]
        assert filter_images_with_few_keypoints(records, 2) == []

    def test_histogram(self, caplog):
        with caplog.at_level(logging.INFO, logger="detectron2.data.build"):
            logging.getLogger("detectron2").propagate = True
            print_instances_class_histogram(RECORDS, ["cat", "dog"])
        if is_lite:
            assert "2 instances of 2 classes" in caplog.text
        with pytest.raises(AssertionError):
            print_instances_class_histogram(RECORDS, ["cat"])

    @pytest.mark.skipif(not is_lite, reason="a full Detectron2 has this")
    def test_proposals_refuse(self):
        with pytest.raises(detectron2.NotInLiteRuntime):
            load_proposals_into_dataset([], "file")


class TestTrainLoader:
    def test_explicit(self):
        loader = build_detection_train_loader(
            RECORDS, mapper=identity, sampler=TrainingSampler(4, shuffle=False), total_batch_size=3,
            aspect_ratio_grouping=False,
        )
        assert numbers(loader, 3) == [[0, 1, 2], [3, 0, 1], [2, 3, 0]]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_grouping(self, workers):
        loader = build_detection_train_loader(
            RECORDS, mapper=identity, sampler=TrainingSampler(4, shuffle=False), total_batch_size=2, num_workers=workers
        )
        batches = numbers(loader, 4)
        assert all(sorted(batch) in ([0, 3], [1, 2]) for batch in batches)
        if workers == 0 or is_lite:  # there the order does not depend on the workers
            assert batches == [[1, 2], [0, 3], [1, 2], [0, 3]]

    def test_collate(self):
        loader = build_detection_train_loader(
            RECORDS, mapper=identity, total_batch_size=2, aspect_ratio_grouping=False, collate_fn=len
        )
        assert next(iter(loader)) == 2

    def test_iterable(self, registered):
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = (registered("test_build", Endless(), classes=None),)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 3
        loader = build_detection_train_loader(cfg, mapper=identity, aspect_ratio_grouping=False)
        assert next(iter(loader)) == [0, 1, 2]
        with pytest.raises(AssertionError):
            build_detection_train_loader(Endless(), mapper=None, sampler=TrainingSampler(3), total_batch_size=1)

    def config(self, name, sampler="TrainingSampler"):
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = (name,)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
        cfg.DATALOADER.SAMPLER_TRAIN = sampler
        cfg.SOLVER.IMS_PER_BATCH = 2
        return cfg

    def test_from_config(self, registered):
        cfg = self.config(registered("test_build", RECORDS))
        cfg.SEED = 3
        order = list(itertools.islice(TrainingSampler(2, seed=3), 6))
        expected = [[[0, 2][i] for i in order[k : k + 2]] for k in (0, 2, 4)]
        assert numbers(build_detection_train_loader(cfg, mapper=identity), 3) == expected

    @mended
    def test_without_a_seed_every_run_differs(self, registered):
        many = [{**RECORDS[0], "i": i} for i in range(50)]
        cfg = self.config(registered("test_build", many))
        first, second = (numbers(build_detection_train_loader(cfg, mapper=identity), 20) for _ in range(2))
        assert first != second

    def test_samplers(self, registered):
        name = registered("test_build", RECORDS)
        cfg = self.config(name, "RepeatFactorTrainingSampler")
        cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
        cfg.DATALOADER.REPEAT_SQRT = False
        counted = list(itertools.chain.from_iterable(numbers(build_detection_train_loader(cfg, mapper=identity), 4)))
        assert counted.count(0) == counted.count(2) == 4
        cfg = self.config(name, "RandomSubsetTrainingSampler")
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
        used = set(itertools.chain.from_iterable(numbers(build_detection_train_loader(cfg, mapper=identity), 4)))
        assert len(used) == 1
        with pytest.raises(ValueError, match="Nonsense"):
            build_detection_train_loader(self.config(name, "Nonsense"), mapper=identity)

    def test_weighted(self, registered):
        cfg = self.config(registered("test_build", RECORDS[:1]), "WeightedTrainingSampler")
        cfg.DATASETS.TRAIN += (registered("test_build_2", RECORDS[2:3]),)
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = [("test_build_2", 3.0)]
        counted = list(itertools.chain.from_iterable(numbers(build_detection_train_loader(cfg, mapper=identity), 8)))
        assert (counted.count(0), counted.count(2)) == (4, 12)


class TestBatchLoader:
    @pytest.mark.parametrize("size", [8, 10, 11])
    @pytest.mark.parametrize("drop_last", [True, False])
    def test_incomplete_batches(self, size, drop_last):
        dataset = DatasetFromList(list(range(size)))
        loader = build_batch_data_loader(dataset, InferenceSampler(size), 4, num_workers=2, drop_last=drop_last)
        batches = list(loader)
        assert len(batches) == len(loader) == (size // 4 if drop_last else -(-size // 4))
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(size // 4 * 4 if drop_last else size))

    def test_batch_sizes(self):
        dataset = DatasetFromList(list(range(6)))
        loader = build_batch_data_loader(dataset, InferenceSampler(6), 0, single_gpu_batch_size=3)
        assert list(loader) == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(ValueError):
            build_batch_data_loader(dataset, InferenceSampler(6), 2, single_gpu_batch_size=3)
        with pytest.raises(AssertionError):
            build_batch_data_loader(dataset, InferenceSampler(6), 0)

    def test_workers_draw_different_numbers_from_a_seed(self):
        def draw(_):
            return torch.rand(1).item()

        def round_of():
            from detectron2.data import MapDataset

            dataset = MapDataset(DatasetFromList(list(range(8))), draw)
            return list(itertools.chain.from_iterable(
                build_batch_data_loader(dataset, InferenceSampler(8), 2, num_workers=2, seed=5)
            ))

        first = round_of()
        assert len(set(first)) == 8
        assert first == round_of()


class TestTestLoader:
    @pytest.mark.parametrize("batch_size, expected", [(1, [[0], [1], [2], [3]]), (3, [[0, 1, 2], [3]])])
    def test_everything_in_order(self, batch_size, expected):
        loader = build_detection_test_loader(RECORDS, mapper=identity, batch_size=batch_size)
        assert numbers(loader, 9) == expected

    def test_from_config(self, registered):
        cfg = get_cfg()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = build_detection_test_loader(cfg, registered("test_build", RECORDS), mapper=identity)
        assert len(loader) == 4
        assert numbers(loader, 9) == [[0], [1], [2], [3]]


def test_a_subset_is_smaller():
    assert len(set(itertools.islice(RandomSubsetTrainingSampler(10, 0.3), 50))) == 3
