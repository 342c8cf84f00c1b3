import numpy as np
import pytest
import torch
from detectron2.utils import comm


def test_alone():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process() and comm.synchronize() is None
    assert comm.gather({"a": 1}) == [{"a": 1}] and comm.all_gather("x") == ["x"]
    losses = {"b": torch.tensor(2.0)}
    assert comm.reduce_dict(losses) == losses


def test_shared_seed_follows_numpys_generator():
    np.random.seed(3)
    first = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == first and 0 <= first < 2**31
    assert comm.shared_random_seed() != first


def _worker(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    comm.create_local_process_group(1)  # as if on two machines
    np.random.seed(rank)
    reduced = comm.reduce_dict({"b": torch.tensor(float(rank)), "a": torch.tensor(4.0)})
    results[rank] = {
        "place": (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
        "all": comm.all_gather([rank] * (rank + 1)),
        "gathered": comm.gather(rank, dst=1),
        "seed": comm.shared_random_seed(),
        "reduced": {name: value.item() for name, value in reduced.items()} if rank == 0 else None,
    }
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, (f"file://{tmp_path}/store", results), nprocs=2)
        first, second = results[0], results[1]
    assert first["place"] == (2, 0, 0, 1) and second["place"] == (2, 1, 0, 1)
    assert first["all"] == second["all"] == [[0], [1, 1]]
    assert first["gathered"] == [] and second["gathered"] == [0, 1]
    assert first["seed"] == second["seed"]
    assert first["reduced"] == {"a": 4.0, "b": 0.5}
