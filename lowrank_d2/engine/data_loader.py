"""A training loader whose every sample is a function of (seed, position): exact to resume, whatever the worker count.

The main process alone walks through the sampler and forms the batches; a worker gets (index, position) pairs and no
state of its own matters. To resume after k batches the walk is repeated without reading any image.
"""
import copy
import itertools
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from lowrank_d2.engine.random_state import seeded
from lowrank_d2.errors import ConfigError, DataError, LowRankError, TrainingError

Place = Tuple[int, int]  # (index into the dataset, position in the sampler over all processes)


class PositionedDataset(Dataset):
    """`dataset[(index, position)]`: the mapped record, under random states that depend on (seed, position) alone.

    The record gets the key "sample_position". Where the mapper returns None, other records are tried, chosen by the
    same random states.
    """

    TRIES = 100

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], Optional[dict]], seed: int):
        self._records, self._mapper, self._seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: Place) -> dict:
        index, position = place
        others = np.random.default_rng((self._seed, position))
        with seeded(self._seed, position):
            for _ in range(self.TRIES):
                record = copy.deepcopy(self._records[index])
                record["sample_position"] = position
                sample = self._mapped(record)
                if sample is not None:
                    return sample
                index = int(others.integers(len(self._records)))
        raise DataError(f"The mapper rejected {self.TRIES} records in a row: nothing to train on. Check the annotations.")


    def _mapped(self, record: dict) -> Optional[dict]:
        try:
            return self._mapper(record)
        except LowRankError:
            raise
        except Exception as error:
            raise TrainingError(
                f"{record.get('file_name', 'A record')} cannot be used: {type(error).__name__}: {error}. "
                "Check the image and its annotations, then run again with --resume."
            ) from error


class PositionedBatches:
    """Endless batches of places, the first `skip` left out.

    Args:
        indices: an endless sampler of this process; its k-th index has position k * world + rank.
        batch_size: of this process.
        groups: for every record a group; a batch is of one group. None: batches in the sampler's order.
    """

    def __init__(self, indices: Iterable[int], batch_size: int, groups: Optional[Sequence[int]] = None, skip: int = 0):
        self._indices, self._batch_size, self._groups, self._skip = indices, batch_size, groups, skip

    def __iter__(self) -> Iterator[List[Place]]:
        return itertools.islice(self._batches(), self._skip, None)

    def _batches(self) -> Iterator[List[Place]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        waiting: Dict[int, List[Place]] = {}
        for count, index in enumerate(self._indices):
            group = 0 if self._groups is None else self._groups[index]
            batch = waiting.setdefault(group, [])
            batch.append((index, count * world + rank))
            if len(batch) == self._batch_size:
                yield waiting.pop(group)


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], Optional[dict]], skip: int = 0) -> DataLoader:
    """Batches of cfg.DATASETS.TRAIN for this process: lists of mapped records.

    Args:
        cfg: SEED must be at least 0.
        skip: batches already trained.

    Raises:
        ConfigError: SOLVER.IMS_PER_BATCH cannot be divided among the processes.
        DataError: no images.
    """
    world = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world} processes cannot share evenly. "
            f"Use a multiple of {world}."
        )
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    if not records:
        raise DataError(f"There is nothing to train on: {', '.join(cfg.DATASETS.TRAIN)} has 0 usable images.")
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(record["width"] > record["height"]) for record in records]
    return loader_of(
        PositionedDataset(DatasetFromList(records, copy=False), mapper, cfg.SEED),
        PositionedBatches(_sampler(cfg, records), cfg.SOLVER.IMS_PER_BATCH // world, groups, skip),
        workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT,
    )


def loader_of(dataset: PositionedDataset, batches: Iterable[List[Place]], workers: int, timeout: float = 0) -> DataLoader:
    """A DataLoader that draws nothing from torch's global generator."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_list,
        timeout=timeout if workers else 0,
        generator=torch.Generator().manual_seed(0),
    )


def _sampler(cfg: CfgNode, records: List[Dict[str, Any]]) -> Iterable[int]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, **({} if cfg.DATALOADER.REPEAT_SQRT else {"sqrt": False})
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)
        return RandomSubsetTrainingSampler(len(records), ratio, seed_shuffle=cfg.SEED, seed_subset=cfg.SEED)
    return TrainingSampler(len(records), seed=cfg.SEED)


def _as_list(samples: List[dict]) -> List[dict]:
    return samples
