"""Two processes on the CPU, one image each: the gradients are those of one process with both images."""
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances
from torch.nn.parallel import DistributedDataParallel

from projects.LORS.tests.models import CONFIGS, KEEP, SMALL
from tests.small_models import configured, random_model

OBJECTS = ((3, 1), (2, 0))  # of the two images, in two steps


def example(seed, count):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((64, 96))
    low = 40 * torch.rand(count, 2, generator=generator)
    instances.gt_boxes = Boxes(torch.cat((low, low + 5 + 15 * torch.rand(count, 2, generator=generator)), dim=1))
    instances.gt_classes = torch.arange(count) % 5
    return {"image": torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8), "instances": instances}


def model_of(name):
    return random_model(configured(CONFIGS / f"{name}.yaml", SMALL), keep=KEEP).double().train()


def step(model, batch):
    sum(model(batch).values()).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for counts in OBJECTS:
        gradients = step(DistributedDataParallel(model_of("lors_R50")), [example(rank, counts[rank])])
        torch.save(gradients, Path(folder) / f"{rank}_{counts[0]}.pt")
    dist.destroy_process_group()


def test_gradients_of_shared_tensors_sum_over_stages_and_processes(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for counts in OBJECTS:
        alone = step(model_of("lors_R50"), [example(rank, count) for rank, count in enumerate(counts)])
        shared = [name for name in alone if ".shared." in name]
        assert len(shared) == 9 and all(alone[name].any() for name in shared)
        for rank in range(2):
            gradients = torch.load(tmp_path / f"{rank}_{counts[0]}.pt")
            assert gradients.keys() == alone.keys()
            for name, gradient in gradients.items():
                near = 1e-7 * alone[name].abs().max().item() + 1e-12
                torch.testing.assert_close(gradient, alone[name], rtol=1e-6, atol=near, msg=name)
