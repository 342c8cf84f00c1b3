"""A training step of small models on one or two processes; in a module that new processes can import."""
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch.nn.parallel import DistributedDataParallel

from lowrank_d2.engine.defaults import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Norms that read their own images alone, and no positive query left out at random.
SAME = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.LORA_DETR.CAP", "1.0"]


def example(seed, count):
    """An image of 64 x 96 pixels with `count` objects."""
    generator = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(count, 2, generator=generator)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.cat((low, low + 5 + 15 * torch.rand(count, 2, generator=generator)), dim=1))
    instances.gt_classes = torch.arange(count) % 80
    return {"image": torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8), "instances": instances}


def model_of(name):
    """In double precision, so that the order of additions does not matter."""
    torch.manual_seed(0)
    files = [str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "mini.yaml")]
    model = build_model(load_config(files, ["MODEL.DEVICE", "cpu", *SAME]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.double().train()


def gradients(model, batch):
    """{parameter: gradient} of a step; parameters that took no part are left out."""
    sum(model(batch).values()).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_of_two(rank, folder, name, steps):
    """Run by both processes: writes the gradients after DistributedDataParallel averaged them.

    Args:
        steps: the objects of the first and the second process's image, in every step.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [
        gradients(DistributedDataParallel(model_of(name), broadcast_buffers=False), [example(rank, counts[rank])])
        for counts in steps
    ]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
