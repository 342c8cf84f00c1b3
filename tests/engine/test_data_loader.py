"""Samples as a function of (seed, position): order, groups, resuming, rejected records."""
import itertools
import random

import numpy as np
import pytest
import torch
from lowrank_d2.engine import random_state
from lowrank_d2.engine.data_loader import PositionedBatches, PositionedDataset, loader_of
from lowrank_d2.errors import DataError, TrainingError


def drawing_mapper(record):
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def batches_of(workers, skip=0, groups=None, count=6):
    dataset = PositionedDataset([{"id": index} for index in range(5)], drawing_mapper, seed=7)
    indices = itertools.cycle([3, 1, 4, 0, 2])
    loader = loader_of(dataset, PositionedBatches(indices, 2, groups, skip), workers)
    return list(itertools.islice(loader, count))


def test_batches_carry_positions():
    assert [[(s["id"], s["sample_position"]) for s in batch] for batch in batches_of(0, count=3)] == [
        [(3, 0), (1, 1)], [(4, 2), (0, 3)], [(2, 4), (3, 5)],
    ]


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 0]])
def test_workers_and_skipping_change_nothing(groups):
    reference = batches_of(0, groups=groups)
    assert batches_of(2, groups=groups) == reference
    assert batches_of(0, skip=4, groups=groups, count=2) == reference[4:]
    drawn = [sample["drawn"] for batch in reference for sample in batch]
    assert len(set(drawn)) == len(drawn)


def test_a_batch_is_of_one_group():
    groups = [0, 1, 1, 0, 0]
    for batch in batches_of(0, groups=groups, count=20):
        assert len({groups[sample["id"]] for sample in batch}) == 1


def test_global_generators_are_left_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    batches_of(0)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_seeded_depends_on_both_numbers():
    def draw(seed, position):
        with random_state.seeded(seed, position):
            return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(2, 1), draw(1, 3), draw(0, 2)}) == 4


def test_captured_states_survive_a_file(tmp_path):
    np.random.randn()  # leaves a second normal number in numpy's state
    torch.save(random_state.capture(), tmp_path / "state.pth")
    expected = random.random(), np.random.randn(), torch.rand(()).item()
    random_state.restore(torch.load(tmp_path / "state.pth", weights_only=True))
    assert (random.random(), np.random.randn(), torch.rand(()).item()) == expected


def test_rejected_records_are_replaced_repeatably():
    dataset = PositionedDataset(range_records(6), lambda record: record if record["id"] % 2 else None, seed=3)
    chosen = [dataset[(0, position)]["id"] for position in range(20)]
    assert set(chosen) == {1, 3, 5} and chosen == [dataset[(0, position)]["id"] for position in range(20)]
    assert dataset[(3, 0)]["id"] == 3
    with pytest.raises(DataError, match="nothing to train on"):
        PositionedDataset(range_records(2), lambda record: None, seed=3)[(0, 0)]


def test_records_are_not_changed_by_the_mapper():
    records = [{"id": 0, "annotations": [1, 2]}]

    def spoil(record):
        record["annotations"].clear()
        return record

    PositionedDataset(records, spoil, 0)[(0, 0)]
    assert records == [{"id": 0, "annotations": [1, 2]}]


def test_a_failing_mapper_names_the_file():
    def fail(record):
        raise ValueError("size 3 is not 4")

    with pytest.raises(TrainingError, match="a.png cannot be used: ValueError: size 3 is not 4"):
        PositionedDataset([{"file_name": "a.png"}], fail, 0)[(0, 0)]


def range_records(count):
    return [{"id": index} for index in range(count)]
