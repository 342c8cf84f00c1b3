"""Detectron2's usual tutorial with quickstart_lora.yaml: `python tutorial.py CONFIG OUTPUT`.

Nothing of lowrank_d2 but its registration and its keys.
"""

import json
import sys
from pathlib import Path

import cv2
import lowrank_d2  # noqa: F401, registers the model and the datasets
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils.visualizer import ColorMode, Visualizer
from lowrank_d2.config import add_lowrank_config


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def configure(config: str, output: str):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(config)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 5
    cfg.SOLVER.STEPS = ()
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.OUTPUT_DIR = output
    return cfg


def main(config: str, output: str) -> None:
    cfg = configure(config, output)
    Path(output).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    trained = Trainer.test(cfg, trainer.model)

    cfg.MODEL.WEIGHTS = str(Path(output, "model_final.pth"))
    predictor = DefaultPredictor(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    seen = []
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:2]:
        image = cv2.imread(record["file_name"])
        instances = predictor(image)["instances"].to("cpu")
        drawn = Visualizer(image[:, :, ::-1], metadata=metadata, scale=2.0, instance_mode=ColorMode.IMAGE)
        picture = drawn.draw_instance_predictions(instances).get_image()
        cv2.imwrite(str(Path(output, Path(record["file_name"]).stem + ".png")), picture[:, :, ::-1])
        shapes = {"image": image.shape, "masks": instances.pred_masks.shape, "drawn": picture.shape}
        seen.append({name: list(shape) for name, shape in shapes.items()})

    evaluator = COCOEvaluator(cfg.DATASETS.TEST[0], output_dir=str(Path(output, "again")))
    loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
    again = inference_on_dataset(predictor.model, loader, evaluator)
    trainable = [name for name, tensor in trainer.model.named_parameters() if tensor.requires_grad]
    print(json.dumps({"trained": trained, "again": again, "seen": seen, "trainable": trainable}))


if __name__ == "__main__":
    main(*sys.argv[1:])
