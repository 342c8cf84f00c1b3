import errno
import json
import random
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import detectron2
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="two processes need two GPUs here")


def report(folder, extra=None):
    content = {
        "world": comm.get_world_size(),
        "local": comm.get_local_rank(),
        "gathered": comm.all_gather(comm.get_rank()),
        "extra": extra,
    }
    (folder / f"{comm.get_rank()}.json").write_text(json.dumps(content))


def train(folder):
    """Each process sees batches of its own; the gradients must be averaged."""
    torch.manual_seed(comm.get_rank())  # different weights, until the wrapper makes them equal
    model = create_ddp_model(nn.Linear(1, 1, bias=False), broadcast_buffers=False)
    with torch.no_grad():
        model.module.weight.fill_(1.0)
    batches = iter(lambda: torch.full((1, 1), float(1 + 2 * comm.get_rank())), None)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return {"loss": self.model(x).sum()}

    trainer = SimpleTrainer(Loss(), batches, torch.optim.SGD(model.parameters(), 0.25))
    trainer.train(0, 1)
    report(folder, [model.module.weight.item(), trainer.storage.latest().get("total_loss", [None])[0]])


def results(folder, ranks):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def test_one_process_is_the_calling_one(tmp_path):
    seen = []
    launch(seen.append, 1, args=(3,))
    assert seen == [3]


def test_several_machines_cannot_find_each_other_automatically():
    with pytest.raises(AssertionError):
        launch(print, 1, num_machines=2, dist_url="auto")


@on_cpu
@mended
@pytest.mark.slow
def test_training_in_two_processes(tmp_path):
    launch(train, 2, dist_url="auto", args=(tmp_path,))
    first, second = results(tmp_path, 2)
    assert first["world"] == second["world"] == 2
    assert (first["local"], second["local"]) == (0, 1)
    assert first["gathered"] == second["gathered"] == [0, 1]
    # gradients 1 and 3, their mean 2; the stored loss is the mean of 1 and 3, on the main process only
    assert first["extra"] == [0.5, 2.0]
    assert second["extra"] == [0.5, None]


def free_port():
    """Below the ports of outgoing connections, of which the machine's other programs make many."""
    for port in random.Random().sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@mended
def test_a_port_in_use_is_one_error_before_any_process_starts():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=url) as error:
            launch(print, 2, dist_url=url)
    assert error.value.errno == errno.EADDRINUSE


@mended
def test_a_port_in_use_concerns_the_first_machine_only(monkeypatch):
    """Machine 1 meets the others at a port that machine 0 listens on."""
    started = []
    monkeypatch.setattr(mp, "start_processes", lambda *args, **kwargs: started.append(kwargs["nprocs"]))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        launch(print, 2, num_machines=2, machine_rank=1, dist_url=f"tcp://127.0.0.1:{other.getsockname()[1]}")
    assert started == [2]


def run_two_machines(folder):
    """Exit codes of two machines with one process each."""
    context = mp.get_context("spawn")
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [context.Process(target=launch, args=(report, 1, 2, rank, url, (folder,))) for rank in (0, 1)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join(240)
        machine.kill()  # if the other never came
        machine.join()
    return [machine.exitcode for machine in machines]


@on_cpu
@pytest.mark.slow
def test_two_machines(tmp_path):
    # Between its choice and its use a port may be taken: then once more, with another.
    assert run_two_machines(tmp_path) == [0, 0] or run_two_machines(tmp_path) == [0, 0]
    first, second = results(tmp_path, 2)
    assert first["gathered"] == second["gathered"] == [0, 1]
    assert first["local"] == second["local"] == 0
