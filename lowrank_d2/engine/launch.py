"""Several processes, one a GPU or several on the CPU: started, signalled and ended as one."""
import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from typing import Callable, Iterator
from urllib.parse import urlsplit

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from lowrank_d2.engine.interrupt import Interrupted
from lowrank_d2.errors import ConfigError, LowRankError, TrainingError

_LOST = 75  # exit code of a process that noticed the loss of another
_PATIENCE = 10.0  # seconds
_CONNECTION = re.compile("gloo|nccl|connection (closed|reset)|broken pipe|timed out", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Detectron2's options for several processes, and --num-processes for the CPU."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--num-gpus", type=int, metavar="N", help="GPUs of this machine (default: 1 where there is one)")
    group.add_argument("--num-processes", type=int, default=1, metavar="N", help="processes on the CPU of this machine")
    group.add_argument("--num-machines", type=int, default=1, metavar="N")
    group.add_argument("--machine-rank", type=int, default=0, metavar="N", help="of this machine, from 0")
    group.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0; auto on one machine")


def world_size(args: argparse.Namespace) -> int:
    """How many processes the run has on all machines.

    Raises:
        ConfigError: not so many GPUs here, or arguments that contradict each other.
    """
    gpus = 1 if args.num_gpus is None else args.num_gpus
    if min(gpus, args.num_processes, args.num_machines) < 1:
        raise ConfigError("--num-gpus, --num-processes and --num-machines must be at least 1.")
    if gpus > 1 and args.num_processes > 1:
        raise ConfigError("--num-gpus and --num-processes exclude each other: a process uses a GPU or the CPU.")
    _check_gpus(args)
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(f"--machine-rank is {args.machine_rank}; with {args.num_machines} machines it ends at {args.num_machines - 1}.")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError("Several machines need --dist-url tcp://HOST:PORT, the same on each.")
    return max(gpus, args.num_processes) * args.num_machines


def _check_gpus(args: argparse.Namespace) -> None:
    found, words = torch.cuda.device_count(), dict(zip(args.opts[::2], args.opts[1::2]))
    one_on_cpu = args.num_gpus == 1 and words.get("MODEL.DEVICE") == "cpu"  # as Detectron2's users write it
    if args.num_gpus is not None and args.num_gpus > found and not one_on_cpu:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but {found} GPUs are found. Use fewer; on the CPU leave it out and add "
            "MODEL.DEVICE cpu (--num-processes N for several processes)."
        )


def check_address(args: argparse.Namespace) -> None:
    """Looks at --dist-url before anything is started.

    Raises:
        ConfigError: it is no address, or another program listens there.
    """
    if world_size(args) == 1 or args.dist_url == "auto" or args.dist_url.startswith("file://"):
        return
    try:
        address = urlsplit(args.dist_url)
        port = address.port
    except ValueError:
        port = None
    if not port or address.scheme != "tcp":
        raise ConfigError(f"--dist-url is {args.dist_url!r}. Write tcp://HOST:PORT with a port from 1 to 65535, or auto.")
    if args.machine_rank:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was closed a moment ago is free
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"--dist-url is {args.dist_url}, but port {port} cannot be used here: {error.strerror}. Name a free port, "
                "or auto on one machine."
            ) from error


def run_processes(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Calls `main(args)` in as many new processes as `args` wants, joined in one process group.

    The signals of this process reach all; the first that fails ends all. Leaves with that one's exit code.

    Raises:
        Interrupted: a signal has ended the run.
        TrainingError: a process was killed.
    """
    if args.num_processes > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that Detectron2 chooses the CPU's communication
    local = max(args.num_gpus or 1, args.num_processes)
    with _forwarding_signals() as received:
        try:
            launch(_process, local, args.num_machines, args.machine_rank, args.dist_url, args=(main, args))
        except ProcessExitedException as error:
            if error.signal_name and not received:
                raise TrainingError(
                    f"Process {error.error_index} was ended by {error.signal_name}. Too little memory? "
                    "Run again with --resume."
                ) from error
            if error.exit_code == _LOST and not received:
                raise TrainingError(
                    "The connection to another process was lost: it was killed, or its machine is gone. "
                    "Run again with --resume."
                ) from error
            if not received:
                sys.exit(error.exit_code)
    if received:
        raise Interrupted(received[0])


def _process(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    os.setpgid(0, 0)  # the terminal's Ctrl-C reaches the parent, which passes it on: once, to everyone
    try:
        main(args)
    except LowRankError as error:
        if not comm.is_main_process():
            time.sleep(_PATIENCE)  # the main process most often says the same, and its end is ours
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except RuntimeError as error:
        if not _CONNECTION.search(str(error)):
            raise
        time.sleep(_PATIENCE)  # whichever process failed first says why and ends us all
        sys.exit(_LOST)


@contextlib.contextmanager
def _forwarding_signals() -> Iterator[list]:
    received: list = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
