"""Mask DINO, or a model of the same stages, at 512 x 512 in multiples of its own backbone: inference of one image,
training steps of two."""
import time
from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn

from lowrank_d2.engine.benchmark.measure import best_seconds, in_fresh_process, peak_mb, seconds
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.memory import keep_freed_memory

SIZE, BATCH, INSTANCES, CLASSES = 512, 2, 5, ("ball", "box", "star", "ring")
# As the paper's authors train each: the label embedding of the denoising queries is trained with the full head alone.
_EMBEDDINGS = ["MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "False"]
TRAINING = {
    "full_head": ["MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "full_head"],
    "adapters_2": ["MODEL.PEFT.METHODS", "['adapter']", "MODEL.PEFT.ADAPTER.REPEATS", "2", *_EMBEDDINGS],
    "lora": ["MODEL.PEFT.METHODS", "['lora']", "MODEL.PEFT.LORA.RANK", "8", *_EMBEDDINGS],
    "embeddings": ["MODEL.PEFT.METHODS", "[]", *_EMBEDDINGS],
}
STAGES = ("backbone", "pixel_decoder", "decoder")


def run(config_files: Sequence[str], rounds: int = 3, training: Mapping[str, Sequence[str]] = TRAINING) -> dict:
    """Measures on the CPU with 2 threads, every kind in a process of its own.

    Args:
        config_files: of a model of these three stages; its weights are not needed.
        rounds: the best of so many counts.
        training: by kind, its KEY VALUE words.

    Returns:
        inference_backbones, inference_peak_mb; inference_seconds by stage; training: by kind, backbones and peak_mb.
    """
    files = list(config_files)
    steps = {kind: in_fresh_process(_training, files, list(opts), rounds) for kind, opts in training.items()}
    return in_fresh_process(_inference, files, rounds) | {"training": steps}


def _inference(config_files: list[str], rounds: int) -> dict:
    model = _model(config_files, ["MODEL.PEFT.METHODS", "[]"]).eval()
    inputs = [{"image": _image(), "height": SIZE, "width": SIZE}]
    clock = _StageClock(model)
    runs = []
    with torch.no_grad():
        model(inputs)
        for _ in range(rounds):
            clock.times.clear()
            total = seconds(lambda: model(inputs))
            runs.append(clock.times | {"rest": total - sum(clock.times.values()), "total": total})
    best = {stage: min(run[stage] for run in runs) for stage in runs[0]}
    return {
        "inference_backbones": round(best["total"] / best["backbone"], 2),
        "inference_peak_mb": round(peak_mb()),
        "inference_seconds": {stage: round(value, 3) for stage, value in best.items()},
    }


def _training(config_files: list[str], opts: list[str], rounds: int) -> dict:
    keep_freed_memory()  # as the trainer does
    model = _model(config_files, opts).train()
    inputs = [{"image": _image(), "instances": _instances()} for _ in range(BATCH)]
    images = torch.stack([x["image"].float() for x in inputs])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()

    def backbone() -> None:
        with torch.no_grad():
            model.backbone(images)

    best = best_seconds({"backbone": lambda: backbone, "step": lambda: step}, rounds)
    return {
        "backbones": round(best["step"] / best["backbone"], 2),
        "peak_mb": round(peak_mb()),
        "seconds": {name: round(value, 3) for name, value in best.items()},
    }


def _model(config_files: list[str], opts: list[str]) -> nn.Module:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(len(CLASSES)), "MODEL.CLASS_NAMES", str(list(CLASSES))]
    return build_model(load_config(config_files, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *classes, *opts]))


def _image() -> torch.Tensor:
    return torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)


def _instances() -> Instances:
    """Ellipses, each within the image."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    radius = SIZE * (0.05 + 0.15 * torch.rand(INSTANCES, 2, 1, 1))
    center = radius + (SIZE - 2 * radius) * torch.rand(INSTANCES, 2, 1, 1)
    inside = ((x - center[:, 0]) / radius[:, 0]) ** 2 + ((y - center[:, 1]) / radius[:, 1]) ** 2 <= 1
    masks = BitMasks(inside)
    classes = torch.randint(len(CLASSES), (INSTANCES,))
    return Instances((SIZE, SIZE), gt_classes=classes, gt_boxes=masks.get_bounding_boxes(), gt_masks=masks)


class _StageClock:
    """Adds up in `times` how long each stage of a model takes, by hooks."""

    def __init__(self, model: nn.Module):
        self.times: dict[str, float] = {}
        for stage in STAGES:
            module = getattr(model, stage)
            module.register_forward_pre_hook(lambda module, inputs, stage=stage: self._start(stage))
            module.register_forward_hook(lambda module, inputs, output, stage=stage: self._stop(stage))

    def _start(self, stage: str) -> None:
        self.times[stage] = -time.perf_counter()

    def _stop(self, stage: str) -> None:
        self.times[stage] += time.perf_counter()
