"""From the names in a config to loaders for training and testing."""
import itertools
import logging
import operator
from typing import Any, Callable, Sequence

import numpy as np
import torch
import torch.utils.data as torchdata
from tabulate import tabulate
from termcolor import colored
from torch.utils.data.sampler import Sampler

from detectron2._lite import refused
from detectron2.config import configurable
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler


logger = logging.getLogger(__name__)

load_proposals_into_dataset = refused("load_proposals_into_dataset", __name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Keep the images with an annotation that is no crowd."""
    kept = [d for d in dataset_dicts if any(a.get("iscrowd", 0) == 0 for a in d["annotations"])]
    logger.info(f"{len(kept)} of {len(dataset_dicts)} images have a usable annotation; the others are left out.")
    return kept


def filter_images_with_few_keypoints(dataset_dicts: list[dict], min_keypoints_per_image: int) -> list[dict]:
    """Keep the images with so many visible keypoints at least, over all their annotations."""

    def visible(record: dict) -> int:
        return sum(int((np.array(a["keypoints"][2::3]) > 0).sum()) for a in record["annotations"] if "keypoints" in a)

    kept = [d for d in dataset_dicts if visible(d) >= min_keypoints_per_image]
    logger.info(f"{len(kept)} of {len(dataset_dicts)} images have {min_keypoints_per_image} keypoints; others are out.")
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log how many instances (without crowds) each class has."""
    counts = np.zeros(len(class_names), dtype=int)
    for record in dataset_dicts:
        classes = np.asarray([a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)], dtype=int)
        if len(classes):
            outside = classes[(classes < 0) | (classes >= len(class_names))]
            name = record.get("file_name", "An image")
            assert not len(outside), f"{name} has the class {outside[0]}, the dataset only 0 to {len(class_names) - 1}."
        np.add.at(counts, classes, 1)

    cells = [cell for name, count in zip(class_names, counts) for cell in (str(name)[:16], int(count))]
    columns = min(6, max(2, len(cells)))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * (columns // 2)
    table = colored(tabulate(rows, headers, tablefmt="pipe", numalign="left", stralign="center"), "cyan")
    log_first_n(logging.INFO, f"{counts.sum()} instances of {len(class_names)} classes:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty: bool = True, min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None, check_consistency: bool = True,
):
    """The records of one or several registered datasets, in one list, or what is registered, if a torch Dataset.

    `filter_empty` drops images without an annotation that is no crowd, `min_keypoints` those with fewer visible ones;
    `check_consistency` wants equal thing_classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "No dataset is named: DATASETS.TRAIN (or TEST) is empty."
    per_name = [DatasetCatalog.get(name) for name in names]
    if isinstance(per_name[0], torchdata.Dataset):
        # Whoever registers a Dataset brings records of his own; nothing below applies to it.
        return per_name[0] if len(per_name) == 1 else torchdata.ConcatDataset(per_name)
    for name, dicts in zip(names, per_name):
        assert len(dicts), f"The dataset '{name}' has no images."
    if proposal_files is not None:
        assert len(names) == len(proposal_files), f"{len(names)} datasets, but {len(proposal_files)} proposal files."
        per_name = [load_proposals_into_dataset(dicts, file) for dicts, file in zip(per_name, proposal_files)]

    dataset_dicts = list(itertools.chain.from_iterable(per_name))
    if "annotations" in dataset_dicts[0]:
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        if min_keypoints > 0:
            dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
        if check_consistency and all(MetadataCatalog.get(name).get("thing_classes") is not None for name in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert len(dataset_dicts), f"No image of {', '.join(names)} has a usable annotation."
    return dataset_dicts


def trivial_batch_collator(batch: list) -> list:
    """A batch is the list of its elements."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed Python's, numpy's and torch's generators of a DataLoader worker, each worker differently."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def build_batch_data_loader(
    dataset: torchdata.Dataset, sampler: Sampler | None, total_batch_size: int, *, aspect_ratio_grouping: bool = False,
    num_workers: int = 0, collate_fn: Callable[[list], Any] | None = None, drop_last: bool = True,
    single_gpu_batch_size: int | None = None, prefetch_factor: int = 2, persistent_workers: bool = False,
    pin_memory: bool = False, seed: int | None = None, **kwargs,
):
    """A loader of batches, each of `total_batch_size` / number of processes elements.

    Args:
        dataset: map-style (with a sampler) or iterable (without).
        total_batch_size: over all processes, which must divide it; or give `single_gpu_batch_size`, elements a process.
        aspect_ratio_grouping: batches of equal orientation; the elements must have "width" and "height".
        collate_fn: list of elements -> batch; None: the list itself.
        seed: of the generator the workers' seeds come from.
    """
    world_size = comm.get_world_size()
    if single_gpu_batch_size and total_batch_size:
        raise ValueError("total_batch_size and single_gpu_batch_size are given; one follows from the other.")
    total = total_batch_size or (single_gpu_batch_size or 0) * world_size
    assert total > 0 and total % world_size == 0, f"A batch of {total} cannot be divided among {world_size} processes."
    batch_size = total // world_size
    logger.info(f"Each process loads batches of {batch_size}.")

    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "An iterable dataset has its own order; sampler must be None."
    else:
        # Whole batches by turns keep the order independent of the number of workers. With grouping, batches are made
        # behind the workers, so single elements do.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=1 if aspect_ratio_grouping else batch_size)
    kwargs = {
        "num_workers": num_workers, "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers, "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if aspect_ratio_grouping:
        assert drop_last, "aspect_ratio_grouping drops incomplete batches; it needs drop_last=True."
        elements = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
        batches = AspectRatioGroupedDataset(elements, batch_size)
        return batches if collate_fn is None else MapDataset(batches, collate_fn)
    return torchdata.DataLoader(
        dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn or trivial_batch_collator, **kwargs
    )


def _training_dicts(cfg, names, proposal_files):
    return get_detection_dataset_dicts(
        names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=proposal_files if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def _sampler_seed(cfg) -> int | None:
    return cfg.SEED if cfg.SEED >= 0 else None  # taken literally, -1 would give every run the same order


def _get_train_datasets_repeat_factors(cfg) -> dict[str, float]:
    """DATASETS.TRAIN_REPEAT_FACTOR, pairs (name, factor), as a dict; datasets that it does not name have 1."""
    pairs = cfg.DATASETS.TRAIN_REPEAT_FACTOR
    assert all(len(pair) == 2 for pair in pairs), f"TRAIN_REPEAT_FACTOR holds pairs (dataset, factor), got {pairs}."
    factors = dict(pairs)
    unknown = sorted(set(factors) - set(cfg.DATASETS.TRAIN))
    assert not unknown, f"TRAIN_REPEAT_FACTOR names {', '.join(unknown)}, which DATASETS.TRAIN does not have."
    return {name: factors.get(name, 1.0) for name in cfg.DATASETS.TRAIN}


def _category_factors(cfg, dicts) -> torch.Tensor:
    by_frequency = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    return by_frequency(dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT)


def _build_weighted_sampler(cfg, enable_category_balance: bool = False) -> RepeatFactorTrainingSampler:
    """Repeat every image by its dataset's factor; with balance also by that of its rarest class in its dataset."""
    factors = []
    for position, (name, dataset_factor) in enumerate(_get_train_datasets_repeat_factors(cfg).items()):
        dicts = _training_dicts(cfg, name, cfg.DATASETS.PROPOSAL_FILES_TRAIN[position : position + 1])
        factor = torch.full((len(dicts),), float(dataset_factor))
        factors.append(factor * _category_factors(cfg, dicts) if enable_category_balance else factor)
    return RepeatFactorTrainingSampler(torch.cat(factors), seed=_sampler_seed(cfg))


def _training_sampler(cfg, dataset) -> Sampler:
    name, seed = cfg.DATALOADER.SAMPLER_TRAIN, _sampler_seed(cfg)
    logger.info(f"Training samples come from {name}.")
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        return RepeatFactorTrainingSampler(_category_factors(cfg, dataset), seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return RandomSubsetTrainingSampler(len(dataset), ratio, seed_shuffle=seed, seed_subset=seed)
    if name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        return _build_weighted_sampler(cfg, enable_category_balance="Category" in name)
    known = "(RepeatFactor|RandomSubset|Weighted|WeightedCategory)TrainingSampler"
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN is '{name}'; it must be TrainingSampler or {known}.")


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict[str, Any]:
    if dataset is None:
        dataset = _training_dicts(cfg, cfg.DATASETS.TRAIN, cfg.DATASETS.PROPOSAL_FILES_TRAIN)
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _training_sampler(cfg, dataset)
    return {
        "dataset": dataset, "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _mapped(dataset, mapper):
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _checked_sampler(dataset, sampler: Sampler | None, default: type[Sampler]) -> Sampler | None:
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "An iterable dataset has its own order; sampler must be None."
        return None
    return default(len(dataset)) if sampler is None else sampler


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset, *, mapper, sampler=None, total_batch_size, aspect_ratio_grouping=True, num_workers=0, collate_fn=None,
    **kwargs,
):
    """The endless loader of training batches. Call it with these arguments, or with a config and any of them.

    Args:
        dataset: list of records, or a torch Dataset, map-style or iterable.
        mapper: record -> model input; None: the records are that.
        sampler: None: a randomly seeded `TrainingSampler`; must be None for an iterable dataset.
        others: see `build_batch_data_loader`.
    """
    dataset, sampler = _mapped(dataset, mapper), _checked_sampler(dataset, sampler, TrainingSampler)
    return build_batch_data_loader(
        dataset, sampler, total_batch_size, aspect_ratio_grouping=aspect_ratio_grouping, num_workers=num_workers,
        collate_fn=collate_fn, **kwargs,
    )


def _test_loader_from_config(cfg, dataset_name, mapper=None) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        of_name = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST))
        proposal_files = [of_name[name] for name in names]
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": _checked_sampler(dataset, None, InferenceSampler),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | torchdata.Dataset, *, mapper: Callable[[dict], Any], sampler: Sampler | None = None,
    batch_size: int = 1, num_workers: int = 0, collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """The loader of test batches: every record once, none dropped. Call it with these arguments, or with (cfg, name).

    `batch_size` is that of each process, and an `InferenceSampler` the default.
    """
    return torchdata.DataLoader(
        _mapped(dataset, mapper), batch_size=batch_size, sampler=_checked_sampler(dataset, sampler, InferenceSampler),
        drop_last=False, num_workers=num_workers, collate_fn=collate_fn or trivial_batch_collator,
    )
