"""A model and a dataset so small that a training run takes a second: what is tested is the engine around them."""
import json
import random
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.trainer import LowRankTrainer
from torch import nn


@META_ARCH_REGISTRY.register()
class TinyDetector(nn.Module):
    """Predicts one box an image. Uses dropout, noise and the image's content, so that every random state counts."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        self.query = nn.Embedding(1, 8)

    def forward(self, batch):
        images = torch.stack([sample["image"].float() for sample in batch]) / 255
        features = self.head(self.backbone(images).mean((2, 3)))
        if not self.training:
            return [{"instances": self._instances(sample, row)} for sample, row in zip(batch, features)]
        noise = torch.rand_like(features)
        targets = torch.stack([sample["instances"].gt_boxes.tensor.mean(0) / 64 for sample in batch])
        return {"loss_box": (features + noise - targets).abs().mean(), "loss_query": self.query.weight.square().mean()}

    def _instances(self, sample, row):
        height, width = sample["height"], sample["width"]
        corner = row.sigmoid() * torch.tensor([width, height, width, height]) / 2
        box = torch.cat([corner[:2], corner[:2] + corner[2:] + 1])
        return Instances(
            (height, width), pred_boxes=Boxes(box[None]), scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=torch.long)
        )


class TinyMapper:
    """A random 24 x 24 crop; it draws from all three global generators, as foreign mappers may."""

    def __init__(self, is_train):
        self._is_train = is_train

    def __call__(self, record):
        image = torch.from_numpy(cv2.imread(record["file_name"]).transpose(2, 0, 1).copy())
        height, width = image.shape[1:]
        top = int(np.random.randint(height - 23)) if self._is_train else 0
        left = random.randint(0, width - 24) if self._is_train else 0
        record["image"] = image[:, top:top + 24, left:left + 24]
        if self._is_train:
            boxes = torch.tensor([annotation["bbox"] for annotation in record["annotations"]])
            boxes = boxes + torch.rand(4)
            record["instances"] = Instances((24, 24), gt_boxes=Boxes(boxes))
        return record


class TinyTrainer(LowRankTrainer):
    """The trainer with TinyMapper in place of the shared mapper."""

    @classmethod
    def build_mapper(cls, cfg, is_train):
        return TinyMapper(is_train)

    @classmethod
    def build_validation_mapper(cls, cfg):
        return TinyMapper(True)


def write_dataset(folder: Path, images: int = 12, height: int = 32, seed: int = 0) -> Path:
    """PNG images of 64 (every third: 24) x `height` pixels with one or two boxes each, and their COCO json."""
    drawn = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in range(images):
        width = 24 if number % 3 == 0 else 64
        cv2.imwrite(str(folder / f"{number}.png"), drawn.integers(0, 255, (height, width, 3), dtype=np.uint8))
        content["images"].append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
        for _ in range(1 + number % 2):
            x, y = (int(value) for value in drawn.integers(0, 10, 2))
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": number + 1, "category_id": 1, "bbox": [x, y, 9, 12],
                "area": 108, "iscrowd": 0, "segmentation": [[x, y, x + 9, y, x + 9, y + 12, x, y + 12]],
            })
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def register(folder: Path, name: str = "tiny", **options) -> str:
    """Writes and registers a dataset, replacing one of this name."""
    path = write_dataset(folder, **options)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_coco_json(str(path), str(folder), name))
    MetadataCatalog.get(name).set(json_file=str(path), image_root=str(folder), evaluator_type="coco", thing_classes=["thing"])
    return name


def tiny_config(output: Path, train: str, *words):
    """Eight steps of batch 2 on the CPU."""
    return load_config([], [
        "MODEL.META_ARCHITECTURE", "TinyDetector", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output), "SEED", "5",
        "DATASETS.TRAIN", f"('{train}',)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "8",
        "SOLVER.CHECKPOINT_PERIOD", "100", "DATALOADER.NUM_WORKERS", "0", "SOLVER.WARMUP_ITERS", "2", "SOLVER.STEPS", "(6,)",
        *[str(word) for word in words],
    ])


def losses_of(output: Path) -> dict:
    """iteration -> total_loss of a run's metrics.json."""
    lines = [json.loads(line) for line in (Path(output) / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    return {line["iteration"]: line["total_loss"] for line in lines}
