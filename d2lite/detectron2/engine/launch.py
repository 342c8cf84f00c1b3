"""Starting the same function in several processes, on one machine or on several."""
import errno
import logging
import secrets
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=(), timeout=DEFAULT_TIMEOUT,
):
    """Calls `main_func(*args)` in num_machines x num_gpus_per_machine processes; call it on every machine.

    Without GPUs the processes run on the CPU. A single process is the calling one.

    Args:
        main_func: function that can be pickled.
        dist_url: where the processes meet, tcp://<first machine>:<port>; "auto" finds a port, on a single machine.
        timeout: timedelta, of every collective operation.

    Raises:
        OSError: with errno EADDRINUSE, on machine 0, if another program listens on the port.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url='auto' cannot tell other machines where to meet: give tcp://host:port"
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning("file:// is unreliable between machines; tcp:// is the safe choice")
    address = urlsplit(dist_url)
    if machine_rank == 0 and address.scheme == "tcp" and address.port and not _is_free(address.port):
        raise OSError(errno.EADDRINUSE, f"another program listens on the port of {dist_url}; choose another dist_url")
    mp.start_processes(
        _distributed_worker, nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout), daemon=False,
    )


def _find_free_port():
    """A port below those that systems give to outgoing connections, one of which might take it before we do."""
    return next(port for port in iter(lambda: 20000 + secrets.randbelow(12000), None) if _is_free(port))


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the one that will listen
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _distributed_worker(
    local_rank, main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout=DEFAULT_TIMEOUT,
):
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        available = torch.cuda.device_count()
        assert num_gpus_per_machine <= available, f"{num_gpus_per_machine} GPUs asked for, {available} here"
    rank = machine_rank * num_gpus_per_machine + local_rank
    backend = "NCCL" if has_gpu else "GLOO"
    dist.init_process_group(backend, init_method=dist_url, world_size=world_size, rank=rank, timeout=timeout)
    comm.create_local_process_group(num_gpus_per_machine)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # NCCL sets up its communicators here, where a misconfiguration fails at once, instead of somewhere in main_func.
    comm.synchronize()
    main_func(*args)
    dist.destroy_process_group()
