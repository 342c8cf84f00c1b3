"""LORS against AdaMixer with the same sampling, 2 x 64: training steps and inference at 512 x 512 on two images."""
from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from lowrank_d2.engine.benchmark.measure import best_seconds, in_fresh_process, peak_mb
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.memory import keep_freed_memory
from lowrank_d2.engine.optimizer import build_optimizer
from lowrank_d2.engine.report import report

SIZE, BATCH, INSTANCES = 512, 2, 5
# Steps in which the process still takes memory from the system, 300,000 pages in the second: that costs whose turn it is.
WARM_UP = 3


def run(lors: Sequence[str], adamixer: Sequence[str], rounds: int = 10, opts: Sequence[str] = ()) -> dict:
    """Measures on the CPU with 2 threads: times in one process, taking turns, peak memory in one process each.

    Args:
        lors, adamixer: configuration files of the two models; their weights are not needed.
        rounds: the best of so many counts.
        opts: KEY VALUE words for both.

    Returns:
        step_ratio (forward, backward and optimizer), inference_ratio, peak_ratio (of a training process) and
        parameters_ratio (of the whole models), LORS divided by AdaMixer each; and by model what they are made of.
    """
    models = {"lors": list(lors), "adamixer": list(adamixer)}
    times = in_fresh_process(_times, models, rounds, list(opts))
    sizes = {name: in_fresh_process(_peak, files, list(opts)) for name, files in models.items()}
    found = {name: times[name] | sizes[name] for name in models}
    kinds = {"step_ratio": "step_seconds", "inference_ratio": "inference_seconds", "peak_ratio": "peak_mb",
             "parameters_ratio": "parameters"}
    ratios = {ratio: round(found["lors"][kind] / found["adamixer"][kind], 3) for ratio, kind in kinds.items()}
    return ratios | found


def _times(models: dict[str, list[str]], rounds: int, opts: list[str]) -> dict[str, dict[str, float]]:
    keep_freed_memory()  # as the trainer does
    tasks = {name: dict(zip(("step_seconds", "inference_seconds"), _tasks(files, opts))) for name, files in models.items()}
    best = {name: {} for name in models}
    for kind in ("step_seconds", "inference_seconds"):  # one after the other, as a training process only steps
        calls = {name: lambda call=kinds[kind]: call for name, kinds in tasks.items()}
        for name, seconds in best_seconds(calls, rounds, WARM_UP).items():
            best[name][kind] = round(seconds, 3)
    return best


def _peak(files: list[str], opts: list[str]) -> dict[str, int]:
    keep_freed_memory()
    step, _ = _tasks(files, opts)
    for _ in range(2):  # the optimizer's state is there from the second one on
        step()
    return {"peak_mb": round(peak_mb()), "parameters": report(load_config(files, opts)).total}


def _tasks(files: list[str], opts: list[str]) -> tuple[Callable[[], None], Callable[[], None]]:
    """What takes one step of a model's training, and what predicts with the same model."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    cfg = load_config(files, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    inputs = [{"image": _image(), "instances": _instances(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)} for _ in range(BATCH)]

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()

    def predict() -> None:
        model.eval()
        with torch.no_grad():
            model([{"image": x["image"]} for x in inputs])

    return step, predict


def _image() -> torch.Tensor:
    return torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)


def _instances(num_classes: int) -> Instances:
    low = 0.6 * SIZE * torch.rand(INSTANCES, 2)
    boxes = torch.cat((low, low + SIZE * (0.05 + 0.3 * torch.rand(INSTANCES, 2))), dim=1)
    return Instances((SIZE, SIZE), gt_classes=torch.randint(num_classes, (INSTANCES,)), gt_boxes=Boxes(boxes))
