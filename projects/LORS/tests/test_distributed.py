"""Two processes on the CPU, one image each: gradients and steps are those of one process with both images."""
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances
from torch.nn.parallel import DistributedDataParallel

from lowrank_d2.engine.optimizer import build_optimizer
from projects.LORS.tests.models import CONFIGS, KEEP, SMALL
from tests.small_models import configured, random_model

OBJECTS = ((3, 1), (2, 0), (0, 0))  # of the two images, in three steps


def example(seed, count):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((64, 96))
    low = 40 * torch.rand(count, 2, generator=generator)
    instances.gt_boxes = Boxes(torch.cat((low, low + 5 + 15 * torch.rand(count, 2, generator=generator)), dim=1))
    instances.gt_classes = torch.arange(count) % 5
    return {"image": torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8), "instances": instances}


class Run:
    """Steps of a model with the optimizer of its configuration, which clips gradients."""

    def __init__(self, wrapped):
        cfg = configured(CONFIGS / "lors_R50.yaml", SMALL, {"SOLVER.BASE_LR": 1e-3})
        self.model = wrapped(random_model(cfg, keep=KEEP).double().train())
        self.optimizer = build_optimizer(cfg, self.model)

    def step(self, batch):
        """The gradients before clipping."""
        self.optimizer.zero_grad()
        sum(self.model(batch).values()).backward()
        parameters = {name.removeprefix("module."): p for name, p in self.model.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        self.optimizer.step()
        return gradients

    def weights(self):
        return {name.removeprefix("module."): p.detach() for name, p in self.model.named_parameters()}


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    run = Run(DistributedDataParallel)
    gradients = [run.step([example(rank, counts[rank])]) for counts in OBJECTS]
    torch.save((gradients, run.weights()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def assert_near(found, expected, what):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        near = 1e-7 * tensor.abs().max().item() + 1e-12
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=near, msg=f"{what}: {name}")


def test_two_processes_step_as_one_with_both_images(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    alone = Run(lambda model: model)
    start = {name: x.clone() for name, x in alone.weights().items()}
    expected = [alone.step([example(rank, count) for rank, count in enumerate(counts)]) for counts in OBJECTS]
    for gradients in expected:
        shared = [name for name in gradients if ".shared." in name]
        assert len(shared) == 9 and all(gradients[name].any() for name in shared)
    norms = [torch.stack([x.norm() for x in gradients.values()]).norm() for gradients in expected]
    assert min(norms[:2]) > 1  # so that clipping acts
    assert all(not torch.equal(alone.weights()[name], start[name]) for name in expected[0])
    for rank in range(2):
        found, weights = torch.load(tmp_path / f"{rank}.pt")
        for counts, mine, true in zip(OBJECTS, found, expected):
            assert_near(mine, true, counts)
        assert_near(weights, alone.weights(), "weights")
