"""The usual tutorial: own data, training, prediction, drawing, evaluation, with plain Detectron2 classes only."""
import json
import os

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.config import configurable, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import BitMasks, ImageList, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

CLASSES = ["red", "green"]
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0)}  # BGR
DATASET = "tutorial_boxes"


@META_ARCH_REGISTRY.register()
class ColourSegmenter(nn.Module):
    """Classifies every pixel by its colour; each class found is one instance."""

    @configurable
    def __init__(self, num_classes, pixel_mean, pixel_std):
        super().__init__()
        self.num_classes = num_classes
        self.classifier = Conv2d(3, num_classes + 1, kernel_size=1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs):
        device = self.pixel_mean.device
        images = [(record["image"].to(device) - self.pixel_mean) / self.pixel_std for record in batched_inputs]
        images = ImageList.from_tensors(images, 8)
        logits = self.classifier(images.tensor)
        if self.training:
            targets = torch.stack([self.target(record, logits.shape[-2:]) for record in batched_inputs])
            return {"loss_pixels": F.cross_entropy(logits, targets.to(device), ignore_index=-1)}
        return [
            {"instances": self.predict(logits[index, :, : size[0], : size[1]], record)}
            for index, (record, size) in enumerate(zip(batched_inputs, images.image_sizes))
        ]

    def target(self, record, padded_size):
        instances = record["instances"]
        target = torch.full(padded_size, -1)
        height, width = instances.image_size
        target[:height, :width] = self.num_classes
        for mask, label in zip(instances.gt_masks.tensor, instances.gt_classes):
            target[:height, :width][mask] = label
        return target

    def predict(self, logits, record):
        probabilities = logits.softmax(0)
        labels = probabilities.argmax(0)
        masks = torch.stack([labels == label for label in range(self.num_classes)])
        found = masks.flatten(1).any(1)
        masks = masks[found]
        result = Instances(tuple(labels.shape))
        result.pred_boxes = BitMasks(masks).get_bounding_boxes()
        result.pred_classes = torch.arange(self.num_classes)[found]
        result.scores = torch.stack([probabilities[:-1][found][i][mask].mean() for i, mask in enumerate(masks)])
        size = record["height"], record["width"]
        resized = F.interpolate(masks[None].float(), size=size, mode="nearest")[0] > 0.5
        result = detector_postprocess(result, *size)
        result.pred_masks = resized
        return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A COCO file with pictures of one red and one green rectangle each, registered as DATASET."""
    folder = tmp_path_factory.mktemp("tutorial")
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 7):
        picture = np.full((48, 64, 3), 60, np.uint8)
        for category, name in enumerate(CLASSES, start=1):
            width, height = generator.integers(10, 24, 2).tolist()
            x, y = 2 + 32 * (category - 1), int(generator.integers(0, 48 - height))
            picture[y : y + height, x : x + width] = COLOURS[name]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
        cv2.imwrite(str(folder / f"{image_id}.png"), picture)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 48, "width": 64})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances(DATASET, {}, str(folder / "annotations.json"), str(folder))
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The config of a finished training."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ColourSegmenter"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.PIXEL_STD = [128.0, 128.0, 128.0]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 60)
    cfg.INPUT.MIN_SIZE_TEST = 48
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 5
    cfg.SOLVER.MAX_ITER = 40
    cfg.SOLVER.STEPS = ()
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(tmp_path_factory.mktemp("output"))

    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    return cfg


@pytest.fixture(scope="module")
def predictor(trained):
    return DefaultPredictor(trained)


def test_records(dataset):
    records = DatasetCatalog.get(dataset)
    assert len(records) == 6
    assert [annotation["category_id"] for annotation in records[0]["annotations"]] == [0, 1]
    assert MetadataCatalog.get(dataset).thing_classes == CLASSES


def test_training_learns_and_evaluates(trained):
    with open(os.path.join(trained.OUTPUT_DIR, "metrics.json")) as stream:
        lines = [json.loads(line) for line in stream]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < losses[0] and losses[-1] < 0.2
    assert lines[-1]["iteration"] == 40
    assert lines[-1]["bbox/AP"] > 90 and lines[-1]["segm/AP"] > 90


def test_prediction(dataset, predictor):
    record = DatasetCatalog.get(dataset)[0]
    instances = predictor(cv2.imread(record["file_name"]))["instances"]
    assert instances.image_size == (48, 64)
    assert instances.pred_classes.tolist() == [0, 1]
    for box, annotation in zip(instances.pred_boxes.tensor.tolist(), record["annotations"]):
        x, y, width, height = annotation["bbox"]
        assert box == pytest.approx([x, y, x + width, y + height], abs=1)


def test_drawing(dataset, predictor):
    record = DatasetCatalog.get(dataset)[0]
    image = cv2.imread(record["file_name"])
    instances = predictor(image)["instances"].to("cpu")
    metadata = MetadataCatalog.get(dataset)
    drawn = Visualizer(image[:, :, ::-1], metadata, scale=4).draw_instance_predictions(instances).get_image()
    assert drawn.shape == (192, 256, 3) and drawn.dtype == np.uint8
    plain = cv2.resize(image[:, :, ::-1], (256, 192), interpolation=cv2.INTER_NEAREST)
    changed = np.abs(drawn.astype(int) - plain).max(axis=2) > 40
    x, y, width, height = (4 * side for side in record["annotations"][0]["bbox"])
    assert changed[y : y + height, x : x + width].mean() > 0.2

    truth = Visualizer(image[:, :, ::-1], metadata, instance_mode=ColorMode.IMAGE).draw_dataset_dict(record)
    assert truth.get_image().shape == (48, 64, 3)


def test_evaluation(dataset, trained, predictor):
    evaluator = COCOEvaluator(dataset, output_dir=os.path.join(trained.OUTPUT_DIR, "again"))
    loader = build_detection_test_loader(trained, dataset)
    results = inference_on_dataset(predictor.model, loader, evaluator)
    assert set(results) == {"bbox", "segm"}
    for task in ("bbox", "segm"):
        assert results[task]["AP50"] == pytest.approx(100)
        assert {f"AP-{name}" for name in CLASSES} <= set(results[task])


def test_a_model_that_knows_nothing_scores_low(dataset, trained, tmp_path):
    cfg = trained.clone()
    cfg.MODEL.WEIGHTS = ""
    torch.manual_seed(1)
    model = DefaultPredictor(cfg).model
    nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 1.0, 0.0])  # everything is green
    evaluator = COCOEvaluator(dataset, output_dir=str(tmp_path))
    results = inference_on_dataset(model, build_detection_test_loader(cfg, dataset), evaluator)
    assert results["bbox"]["AP50"] == 0
