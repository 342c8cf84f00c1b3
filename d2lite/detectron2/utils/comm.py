"""Talking between processes; every function also works, trivially, in a single process."""
import functools

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """The number of processes, over all machines."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """This process's number, over all machines."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return get_rank() == 0


@functools.lru_cache(maxsize=None)
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one group of processes for each machine; every process calls this once, after ``init_process_group``."""
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None, "The groups of the machines exist already."
    world = get_world_size()
    assert world % num_workers_per_machine == 0, f"{world} processes are no machines of {num_workers_per_machine}."
    own_machine = get_rank() // num_workers_per_machine
    for machine in range(world // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == own_machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group():
    """The torch group of this machine's processes."""
    assert _LOCAL_PROCESS_GROUP is not None, "No group yet: start by engine.launch, or create_local_process_group()."
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """This process's number on its machine."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """The number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize():
    """Wait until every process is here."""
    if get_world_size() > 1:
        on_gpu = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


@functools.lru_cache(maxsize=None)
def _get_global_gloo_group():
    """A group of all processes whose objects travel over the CPU, where pickles belong."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def all_gather(data, group=None):
    """A list of the picklable objects of every process of ``group`` (default: all), by rank."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    collected = [None] * dist.get_world_size(group)
    dist.all_gather_object(collected, data, group=group)
    return collected


def gather(data, dst=0, group=None):
    """As :func:`all_gather` in process ``dst``; an empty list in the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    if dist.get_world_size(group) == 1:
        return [data]
    collected = [None] * dist.get_world_size(group) if dist.get_rank() == dst else None
    dist.gather_object(data, collected, dst=dst, group=group)
    return collected or []


def shared_random_seed():
    """A random int below 2**31 on which all processes agree, from numpy's global generator; all must call this."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict, average=True):
    """The sum (or average) of the scalar tensors of a dict over all processes, in process 0; others get no result."""
    world = get_world_size()
    if world == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # the order of insertion may differ between processes
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= world
        return dict(zip(names, values))
