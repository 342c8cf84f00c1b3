"""Intersection over union and accuracy of semantic segmentation."""
import itertools
import json
import logging
import os
from collections import OrderedDict

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)


def load_image_into_numpy_array(filename: str, dtype: np.dtype | str | None = None) -> np.ndarray:
    """The pixels of an image file as they are stored, as `dtype`."""
    with PathManager.open(filename, "rb") as f:
        return np.asarray(Image.open(f), dtype=dtype)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU and its relatives, 0..100, over a registered dataset with sem_seg_file_name.

    Classes are those of the metadata's stuff_classes. Averages leave out classes that the ground truth does not have.
    `output_dir` gets sem_seg_predictions.json and sem_seg_evaluation.pth.
    """

    def __init__(
        self, dataset_name, distributed=True, output_dir=None, *, sem_seg_loading_fn=load_image_into_numpy_array,
        num_classes=None, ignore_label=None,
    ):
        for name, value in (("num_classes", num_classes), ("ignore_label", ignore_label)):
            if value is not None:
                logger.warning(f"SemSegEvaluator({name}=...) is outdated; it comes from the metadata.")
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name, self._distributed, self._output_dir = dataset_name, distributed, output_dir
        self._cpu_device = torch.device("cpu")
        self._class_names, self._num_classes = metadata.stuff_classes, len(metadata.stuff_classes)
        known = self._num_classes
        assert num_classes in (None, known), f"num_classes is {num_classes}, the metadata have {known} stuff_classes."
        self._ignore_label = ignore_label if ignore_label is not None else metadata.ignore_label
        contiguous = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = {v: k for k, v in contiguous.items()} if contiguous else None
        records = DatasetCatalog.get(dataset_name)
        self.input_file_to_gt_file = {record["file_name"]: record["sem_seg_file_name"] for record in records}
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.reset()

    def reset(self) -> None:
        # [prediction, ground truth]; the last row and column stand for pixels without a label.
        self._conf_matrix = np.zeros((self._num_classes + 1, self._num_classes + 1), dtype=np.int64)
        self._predictions: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes records with "file_name" and outputs with "sem_seg", scores (C, H, W) in the label file's size."""
        side = self._num_classes + 1
        for record, output in zip(inputs, outputs):
            prediction = output["sem_seg"].argmax(dim=0).to(self._cpu_device).numpy().astype(int)
            truth = np.array(self.sem_seg_loading_fn(self.input_file_to_gt_file[record["file_name"]], dtype=int))
            truth[truth == self._ignore_label] = self._num_classes
            pairs = side * prediction.reshape(-1) + truth.reshape(-1)
            self._conf_matrix += np.bincount(pairs, minlength=side * side).reshape(side, side)
            self._predictions.extend(self.encode_json_sem_seg(prediction, record["file_name"]))

    def evaluate(self) -> OrderedDict | None:
        """{"sem_seg": {mIoU, fwIoU, IoU-<class>, mACC, pACC, ACC-<class>}}; None unless on the main process."""
        if self._distributed:
            comm.synchronize()
            matrices = comm.gather(self._conf_matrix, dst=0)
            predictions = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return None
            self._conf_matrix = sum(matrices)
            self._predictions = list(itertools.chain.from_iterable(predictions))
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_predictions.json"), "w") as f:
                json.dump(self._predictions, f)

        metrics = self._metrics()
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as f:
                torch.save(metrics, f)
        logger.info({"sem_seg": metrics})
        return OrderedDict({"sem_seg": metrics})

    def _metrics(self) -> dict[str, float]:
        right = self._conf_matrix.diagonal()[:-1].astype(float)
        true = self._conf_matrix[:-1, :-1].sum(axis=0).astype(float)
        present = true > 0
        accuracy = _ratio(right, true)
        iou = _ratio(right, true + self._conf_matrix[:-1, :-1].sum(axis=1) - right)
        iou[~present] = np.nan

        def mean(values: np.ndarray) -> float:
            return float(100 * values.mean()) if values.size else float("nan")

        share = true / max(true.sum(), 1)
        metrics = {"mIoU": mean(iou[present]), "fwIoU": float(100 * (iou[present] * share[present]).sum())}
        metrics.update({f"IoU-{name}": float(100 * value) for name, value in zip(self._class_names, iou)})
        metrics.update(mACC=mean(accuracy[present]), pACC=float(100 * right.sum() / max(true.sum(), 1)))
        metrics.update({f"ACC-{name}": float(100 * value) for name, value in zip(self._class_names, accuracy)})
        return metrics

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """A label map (H, W) as COCO's stuff results: one RLE a class."""
        encoded = []
        for label in np.unique(sem_seg):
            category = int(label)
            if self._contiguous_id_to_dataset_id is not None:
                assert label in self._contiguous_id_to_dataset_id, f"Label {label} has no id in the metadata."
                category = self._contiguous_id_to_dataset_id[category]
            rle = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("utf-8")
            encoded.append({"file_name": input_file_name, "category_id": category, "segmentation": rle})
        return encoded
