"""What branches cost: training steps with one, two and three of them, relative to none, and evaluation with them."""
from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from lowrank_d2.engine.benchmark.measure import best_seconds, in_fresh_process
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.memory import keep_freed_memory
from lowrank_d2.engine.optimizer import build_optimizer

SIZE, BATCH, INSTANCES, CLASSES = 512, 2, 5, 80
# Steps in which the process still takes memory from the system, a million pages: that costs whose turn it is.
WARM_UP = 2
BRANCHES: Mapping[str, str] = {"0": "None", "1": "[6]", "2": "[6, 3]", "3": "[6, 4, 2]"}  # number -> k


def run(config_files: Sequence[str], rounds: int = 8) -> dict:
    """Measures on the CPU with 2 threads, in one process; the models take turns.

    Args:
        config_files: of the model; its weights are not needed.
        rounds: the best of so many counts.

    Returns:
        branches: by their number, a training step (forward, backward, optimizer) divided by one without branches;
        evaluation: with three branches, divided by that without; seconds: what they are made of.
    """
    best = in_fresh_process(_seconds, list(config_files), rounds)
    steps = {count: best[f"training_{count}"] for count in BRANCHES}
    return {
        "branches": {count: round(steps[count] / steps["0"], 3) for count in BRANCHES if count != "0"},
        "evaluation": round(best["evaluation_3"] / best["evaluation_0"], 3),
        "seconds": {name: round(value, 3) for name, value in best.items()},
    }


def _seconds(config_files: list[str], rounds: int) -> dict[str, float]:
    keep_freed_memory()  # as the trainer does
    torch.set_num_threads(2)
    steps: dict[str, Callable[[], Callable[[], None]]] = {}
    evaluations: dict[str, Callable[[], Callable[[], None]]] = {}
    for count, k in BRANCHES.items():
        torch.manual_seed(0)
        words = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(CLASSES)]
        cfg = load_config(config_files, [*words, "MODEL.LORA_DETR.K", k])
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        steps[f"training_{count}"] = lambda model=model, optimizer=optimizer: _step(model, optimizer)
        if count in ("0", "3"):
            evaluations[f"evaluation_{count}"] = lambda model=model: _evaluation(model)
    # One after the other, as a training process only steps.
    return best_seconds(steps, rounds, WARM_UP) | best_seconds(evaluations, rounds)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    inputs = _inputs()
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()

    return step


def _evaluation(model: nn.Module) -> Callable[[], None]:
    inputs = [{"image": x["image"]} for x in _inputs()]
    model.eval()

    def evaluate() -> None:
        with torch.no_grad():
            model(inputs)

    return evaluate


def _inputs() -> list[dict]:
    generator = torch.Generator().manual_seed(0)  # the same images for all models
    inputs = []
    for _ in range(BATCH):
        image = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        low = 0.6 * SIZE * torch.rand(INSTANCES, 2, generator=generator)
        sides = SIZE * (0.05 + 0.3 * torch.rand(INSTANCES, 2, generator=generator))
        classes = torch.randint(CLASSES, (INSTANCES,), generator=generator)
        boxes = Boxes(torch.cat((low, low + sides), dim=1))
        inputs.append({"image": image, "instances": Instances((SIZE, SIZE), gt_classes=classes, gt_boxes=boxes)})
    return inputs
