"""Predictions for a file or folder: a picture of each, and one COCO json of all."""
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lowrank_d2.data import image_files
from lowrank_d2.data.mapper import LowRankMapper
from lowrank_d2.engine.checkpoint import LowRankCheckpointer, stored_class_names, verify_weights
from lowrank_d2.engine.defaults import check_device
from lowrank_d2.engine.own_data import reads_words, with_classes, with_words
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.errors import ConfigError, DataError, OutputError, TrainingError
from lowrank_d2.evaluation.spool import Spool
from lowrank_d2.files import PathLike, write_with
from lowrank_d2.modeling.delta_file import local_delta
from lowrank_d2.peft import read_header

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What `predict_files` did: number of images and of instances, and the files that were no images."""

    images: int
    instances: int
    skipped: List[str]


def predict_files(
    cfg: CfgNode, source: str, output: str, threshold: float = 0.5, words: Optional[Sequence[str]] = None
) -> Summary:
    """Writes `output`/<name>.png for every image and `output`/predictions.json.

    Args:
        source: an image, or a folder that is searched with everything below it.
        threshold: least score of an instance, in [0, 1].
        words: what to look for instead of the model's classes, where it reads words; None: the classes.

    Raises:
        ConfigError: a threshold outside [0, 1], no weights, words for a model that reads none.
        DataError: there is no image.
        OutputError: `output` cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--confidence-threshold is {threshold}; it must be at least 0 and at most 1.")
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty: set it to a checkpoint (and MODEL.PEFT.DELTA to a delta).")
    check_device(cfg)
    verify_weights(cfg)
    files = find_files(source, leave_out=output)
    names = _unique_names(files)
    check_output(output, files)
    predictor = Predictor(cfg, words)
    spool = Spool(output)
    images, count, skipped = 0, 0, []
    root = source if os.path.isdir(source) else os.path.dirname(source) or "."
    for path, name in tqdm(list(zip(files, names)), "predicting", unit="image", disable=None):
        try:
            image_files.read_header(path, cfg.INPUT.MAX_PIXELS)
            instances = predictor(path)
        except (image_files.BadImage, DataError, TrainingError) as error:
            logger.warning("Skipped: %s", error)
            skipped.append(path)
            continue
        instances = instances[instances.scores >= threshold]
        images += 1
        pixels = image_files.read_image(path, exif=cfg.INPUT.EXIF)
        write_png(Path(output, f"{name}.png"), draw_instances(pixels, instances, predictor.class_names))
        count += len(instances)
        spool.add(images, coco_records(
            instances, images, os.path.relpath(path, root), predictor.class_names, predictor.category_ids
        ))
    if not images:
        raise DataError(f"{source}: none of the {len(files)} files there is an image that can be read.")
    spool.write(Path(output, "predictions.json"))
    return Summary(images, count, skipped)


def find_files(source: str, leave_out: str = "") -> List[str]:
    """`source`, or the regular files below it in order, each real file once; not hidden ones, nor the folder `leave_out`.

    Raises:
        DataError: it does not exist, is neither file nor folder, or is an empty folder.
    """
    if os.path.isfile(source):
        return [source]
    if not os.path.isdir(source):
        what = "is neither a regular file nor a folder" if os.path.lexists(source) else "does not exist"
        raise DataError(f"--input {source} {what}. Name an image or a folder of images.")
    found, seen = [], {os.path.realpath(leave_out)} - {os.path.realpath(source)} if leave_out else set()
    for path in _walk(source, seen):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            found.append(path)
    if not found:
        raise DataError(f"--input {source} holds no files. Name a folder of images.")
    return found


class Predictor:
    """A model ready to be asked for instances by file name.

    Attributes:
        class_names: by label: the words, else MODEL.CLASS_NAMES where these are words too, else the delta's, else those
            of the run that wrote the checkpoint, else the dataset's.
        category_ids: by label: the dataset's, else 1, 2, ...
    """

    def __init__(self, cfg: CfgNode, words: Optional[Sequence[str]] = None):
        dataset, ids = _classes_of_data(cfg)
        if words is not None:
            cfg, names = with_words(cfg, words), list(words)
        elif reads_words(cfg) and cfg.MODEL.CLASS_NAMES:
            names = list(cfg.MODEL.CLASS_NAMES)
        elif cfg.MODEL.PEFT.DELTA:
            names = list(read_header(local_delta(cfg.MODEL.PEFT.DELTA)).class_names)
        else:
            names = stored_class_names(cfg.MODEL.WEIGHTS)
            if names:
                cfg = with_classes(cfg, names)
        self._mapper = LowRankMapper(cfg, False)
        self._model = LowRankTrainer.build_model(cfg).eval()
        self.class_names = names or dataset or getattr(self._model, "class_names", [])
        self.category_ids = ids if self.class_names == dataset else []
        LowRankCheckpointer(self._model).load(cfg.MODEL.WEIGHTS)

    @torch.inference_mode()
    def __call__(self, path: str) -> Instances:
        """Instances on the CPU, in pixels of the image at `path`.

        Raises:
            TrainingError, DataError: it cannot be read.
        """
        result = self._model([self._mapper({"file_name": path})])[0]
        if "instances" not in result:
            raise ConfigError(
                f"This model predicts no instances. Set MODEL.{type(self._model).__name__}.TEST.INSTANCE_ON True."
            )
        return result["instances"].to("cpu")


def coco_records(
    instances: Instances, image_id: int, file_name: str, class_names: Sequence[str], category_ids: Sequence[int] = ()
) -> List[Dict[str, Any]]:
    """COCO results (boxes xywh in pixels, masks as compressed run lengths) with file and class names."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    records = []
    for index, (box, score, label) in enumerate(zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist())):
        record = {
            "image_id": image_id, "file_name": file_name,
            "category_id": category_ids[label] if label < len(category_ids) else label + 1,
            "category_name": _name_of(label, class_names), "bbox": box, "score": score,
        }
        if instances.has("pred_masks"):
            mask = np.asfortranarray(instances.pred_masks[index].numpy().astype(np.uint8))
            code = coco_mask.encode(mask)
            record["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
        records.append(record)
    return records


def _walk(folder: str, seen: set) -> Iterator[str]:
    """Regular files below `folder`, depth first by name; a folder that links lead to again is left out."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        if entry.name.startswith("."):
            continue
        try:
            if entry.is_dir():
                yield from _walk(entry.path, seen)
            elif entry.is_file():
                yield entry.path
        except OSError as error:
            logger.warning("Skipped %s: %s", entry.path, error.strerror)


def _unique_names(files: Sequence[str]) -> List[str]:
    """File names without ending; the second `a` becomes `a_2`."""
    names: List[str] = []
    taken = {"predictions.json"}
    for path in files:
        stem = name = Path(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names.append(name)
    return names


def check_output(output: PathLike, files: Sequence[str]) -> None:
    """Raises OutputError when `output` is a file, or the folder of one of the images `files`."""
    if os.path.exists(output) and not os.path.isdir(output):
        raise OutputError(f"--output {output} is a file. Name a folder.")
    if os.path.realpath(output) in {os.path.dirname(os.path.realpath(path)) for path in files}:
        raise OutputError(f"--output {output} is the folder of the input, whose images would be overwritten. Name another.")


def _classes_of_data(cfg: CfgNode) -> Tuple[List[str], List[int]]:
    """Class names and category ids by label of the first dataset that knows its classes."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        metadata = MetadataCatalog.get(name)
        classes = list(metadata.get("thing_classes", []))
        if classes:
            by_label = {label: key for key, label in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
            return classes, [by_label[label] for label in range(len(classes))] if by_label else []
    return [], []


def _name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class_{label + 1}"


def draw_instances(pixels: np.ndarray, instances: Instances, class_names: Sequence[str], scale: float = 1.0) -> np.ndarray:
    """The image `pixels` (h, w, 3) RGB magnified by `scale`, with boxes, masks, class names and scores drawn over it."""
    labels = [
        f"{_name_of(label, class_names)} {score:.0%}"
        for label, score in zip(instances.pred_classes.tolist(), instances.scores.tolist())
    ]
    masks = instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None
    drawn = Visualizer(pixels, scale=scale).overlay_instances(boxes=instances.pred_boxes, masks=masks, labels=labels)
    return drawn.get_image()


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes `pixels` (h, w, 3) RGB, atomically."""
    encoded = cv2.imencode(".png", pixels[..., ::-1])[1]
    write_with(path, lambda temporary: temporary.write_bytes(encoded.tobytes()))
