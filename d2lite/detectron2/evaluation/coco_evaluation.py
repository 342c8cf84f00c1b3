"""COCO's average precision of boxes, masks and keypoints, computed by pycocotools."""
import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2._lite import refused
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator
from .fast_eval_api import COCOeval_opt

logger = logging.getLogger(__name__)

_evaluate_box_proposals = refused("_evaluate_box_proposals", __name__)

_BOX_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
_METRICS = {"bbox": _BOX_METRICS, "segm": _BOX_METRICS, "keypoints": ["AP", "AP50", "AP75", "APm", "APl"]}
_RESULT_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def _open_ground_truth(json_file: str) -> COCO:
    """The json as pycocotools' COCO, with what its evaluation needs and many files lack."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(PathManager.get_local_path(json_file))
    for annotation in coco.dataset.get("annotations", []):
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            has_mask = bool(annotation.get("segmentation"))
            _, _, width, height = annotation.get("bbox", (0, 0, 0, 0))
            annotation["area"] = float(mask_util.area(coco.annToRLE(annotation)) if has_mask else width * height)
    return coco


class COCOEvaluator(DatasetEvaluator):
    """AP of a registered dataset, on COCO's terms. Metrics are 0..100; NaN where there is nothing to measure.

    Args:
        dataset_name: its metadata name the `json_file` with the ground truth. Without one the records are converted
            into `output_dir` (ValueError if that is None too), or with `allow_cached_coco` an earlier conversion used.
        tasks: of "bbox", "segm", "keypoints"; None: what the predictions contain.
        distributed: gather the predictions of all processes; otherwise each evaluates its own.
        output_dir: gets instances_predictions.pth and coco_instances_results.json; None: nothing is written.
        max_dets_per_image: detections that count, 100 by default: an int, or COCO's list of three.
        kpt_oks_sigmas: of the keypoints; () for COCO's persons.
    """

    def __init__(
        self, dataset_name, tasks=None, distributed=True, output_dir=None, *, max_dets_per_image=None,
        use_fast_impl=True, kpt_oks_sigmas=(), allow_cached_coco=True,
    ):
        if isinstance(tasks, CfgNode):  # the signature of before 2021
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            logger.warning("COCOEvaluator(dataset_name, cfg) is outdated; the tasks now follow from the predictions.")
            tasks = None
        if max_dets_per_image is None:
            max_dets_per_image = [1, 10, 100]
        elif isinstance(max_dets_per_image, int):
            # Ascending, since pycocotools sorts the limits and takes the last for AP.
            max_dets_per_image = [1, min(10, max_dets_per_image), max_dets_per_image]
        assert len(max_dets_per_image) == 3, f"COCO counts with three limits of detections, got {max_dets_per_image}."
        self._tasks, self._distributed, self._output_dir = tasks, distributed, output_dir
        self._max_dets_per_image, self._kpt_oks_sigmas = list(max_dets_per_image), kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: list[dict] = []

        json_file = self._metadata.get("json_file")
        if json_file is None:
            if output_dir is None:
                raise ValueError(f"'{dataset_name}' has no json_file in its metadata; give an output_dir.")
            # Not noted in the metadata: the next evaluator must look at the records again, they may have changed.
            json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, json_file, allow_cached=allow_cached_coco)
        self._coco_api = _open_ground_truth(json_file)
        # Test sets come without annotations: then predictions are written, and not judged.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes records with "image_id", and outputs with "instances" of the original image's size: pred_boxes, scores,
        pred_classes and optionally pred_masks (N, H, W) and pred_keypoints (N, K, 3)."""
        for record, output in zip(inputs, outputs):
            prediction = {"image_id": record["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = instances_to_coco_json(instances, record["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids=None) -> dict:
        """{"bbox": {"AP": ..., "AP50": ..., "AP-<class>": ...}, "segm": {...}}, over `img_ids` or all images.

        {} on other processes than the main one, and where nothing was processed.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("COCOEvaluator has got no predictions; did the model give 'instances'?")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as f:
                torch.save(predictions, f)

        self._results: OrderedDict = OrderedDict()
        if "proposals" in predictions[0]:
            self._results["box_proposals"] = _evaluate_box_proposals(predictions, self._coco_api)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids=img_ids)
        return copy.deepcopy(self._results)

    def _to_dataset_ids(self, results: list[dict]) -> list[dict]:
        """Copies with the json's category ids in place of the model's class numbers."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return results
        back = {contiguous: dataset_id for dataset_id, contiguous in id_map.items()}
        assert sorted(back) == list(range(len(back))), f"The metadata's class numbers are not 0 to {len(back) - 1}."
        for predicted in {result["category_id"] for result in results}:
            assert predicted in back, f"Class {predicted} was predicted, but the dataset has only {len(back)} classes."
        return [{**result, "category_id": back[result["category_id"]]} for result in results]

    def _eval_predictions(self, predictions: list[dict], img_ids=None) -> None:
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        found = {key for result in results for key in result}
        tasks = self._tasks or [task for task, key in _RESULT_KEYS.items() if key in found or task == "bbox"]
        results = self._to_dataset_ids(results)
        if self._output_dir:
            file = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info(f"Writing the predictions to {file}.")
            with PathManager.open(file, "w") as f:
                json.dump(results, f)
        if not self._do_evaluation:
            logger.info("The json has no annotations; the predictions are not judged.")
            return

        class_names = self._metadata.get("thing_classes")
        for task in sorted(tasks):
            assert task in _METRICS, f"A task is one of {', '.join(_METRICS)}, got '{task}'."
            coco_eval = None  # pycocotools cannot deal with no detections at all
            if results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api, results, task, kpt_oks_sigmas=self._kpt_oks_sigmas, img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
            self._results[task] = self._derive_coco_results(coco_eval, task, class_names=class_names)

    def _derive_coco_results(self, coco_eval: COCOeval | None, iou_type: str, class_names=None) -> dict[str, float]:
        """The metrics of a finished evaluation, and with several classes the AP of each."""
        metrics = _METRICS[iou_type]
        if coco_eval is None:
            logger.warning(f"There are no predictions to judge for {iou_type}.")
            return dict.fromkeys(metrics, float("nan"))

        def percent(value: float) -> float:
            return float(value * 100) if value >= 0 else float("nan")  # COCO says -1 for "nothing there"

        results = {metric: percent(coco_eval.stats[i]) for i, metric in enumerate(metrics)}
        logger.info(f"Results for {iou_type}:\n{_table(results, columns=len(results))}")
        if class_names is None or len(class_names) <= 1:
            return results

        precision = coco_eval.eval["precision"]  # (IoU, recall, class, area, limit of detections)
        known = precision.shape[2]
        assert len(class_names) == known, f"The metadata name {len(class_names)} classes, the json {known} categories."
        by_class = {}
        for i, name in enumerate(class_names):
            values = precision[:, :, i, 0, -1]
            values = values[values > -1]
            by_class[str(name)] = percent(values.mean() if values.size else -1)
        logger.info(f"AP of each class for {iou_type}:\n{_table(by_class, columns=3)}")
        results.update({f"AP-{name}": value for name, value in by_class.items()})
        return results


def _table(values: dict[str, float], columns: int) -> str:
    """So many pairs of name and value a row."""
    cells = [cell for pair in values.items() for cell in pair]
    width = 2 * min(columns, len(values))
    rows = [cells[i : i + width] for i in range(0, len(cells), width)]
    return tabulate(rows, ["metric", "value"] * (width // 2), tablefmt="pipe", floatfmt=".3f", numalign="left")


def instances_to_coco_json(instances: Instances, img_id) -> list[dict]:
    """`Instances` on the CPU as COCO's list of results; class numbers stay the model's."""
    if len(instances) == 0:
        return []
    boxes = instances.pred_boxes.tensor.numpy()
    columns = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        masks = [np.asfortranarray(mask, dtype=np.uint8) for mask in np.asarray(instances.pred_masks)]
        rles = [mask_util.encode(mask) for mask in masks]
        columns["segmentation"] = [{"size": rle["size"], "counts": rle["counts"].decode("utf-8")} for rle in rles]
    if instances.has("pred_keypoints"):
        # Ours are coordinates with a pixel's centre at + 0.5, COCO's are indices of pixels.
        keypoints = instances.pred_keypoints.clone()
        keypoints[:, :, :2] -= 0.5
        columns["keypoints"] = keypoints.flatten(1).tolist()
    return [{"image_id": img_id, **dict(zip(columns, row))} for row in zip(*columns.values())]


def _evaluate_predictions_on_coco(
    coco_gt: COCO, coco_results: list[dict], iou_type: str, kpt_oks_sigmas=None, cocoeval_fn=COCOeval_opt, img_ids=None,
    max_dets_per_image=None,
) -> COCOeval:
    """Run pycocotools on results that are not empty. Its report goes into the log."""
    assert len(coco_results) > 0, "There are no results to judge."
    if iou_type == "segm":
        # Without boxes pycocotools takes areas from masks; small, medium and large are meant so for masks.
        coco_results = [{key: value for key, value in result.items() if key != "bbox"} for result in coco_results]

    with contextlib.redirect_stdout(io.StringIO()):
        coco_dt = coco_gt.loadRes(coco_results)
        max_dets = list(max_dets_per_image or [1, 10, 100])
        coco_eval = (cocoeval_fn if max_dets[2] == 100 else COCOevalMaxDets)(coco_gt, coco_dt, iou_type)
        if iou_type == "keypoints":
            _set_sigmas(coco_eval, kpt_oks_sigmas, len(coco_results[0]["keypoints"]) // 3)
        else:
            coco_eval.params.maxDets = max_dets
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):
        coco_eval.summarize()
    logger.info(f"pycocotools' summary for {iou_type}:\n{summary.getvalue()}")
    return coco_eval


def _set_sigmas(coco_eval: COCOeval, sigmas, num_keypoints: int) -> None:
    if sigmas is not None and len(sigmas):
        coco_eval.params.kpt_oks_sigmas = np.array(sigmas)
    known = len(coco_eval.params.kpt_oks_sigmas)
    assert known == num_keypoints, f"{num_keypoints} keypoints need so many TEST.KEYPOINT_OKS_SIGMAS, not {known}."


class COCOevalMaxDets(COCOeval):
    """COCOeval whose AP counts with the last of `params.maxDets`; the original insists on 100 there."""

    def summarize(self) -> None:
        """Fill `stats`: AP, AP50, AP75, APs, APm, APl, then AR for the three limits and the three sizes."""
        if self.params.iouType == "keypoints":
            super().summarize()
            return
        # Both (IoU, recall, class, area, limit).
        precision, recall = self.eval["precision"], self.eval["recall"][:, None]
        iou_50, iou_75 = (np.isclose(self.params.iouThrs, threshold) for threshold in (0.5, 0.75))
        everything = slice(None)
        thresholds = {"AP": everything, "AP50": iou_50, "AP75": iou_75}
        rows = [(name, precision, ious, 0, 2) for name, ious in thresholds.items()]
        rows += [(f"AP{size}", precision, everything, area, 2) for area, size in enumerate("sml", start=1)]
        rows += [(f"AR@{self.params.maxDets[limit]}", recall, everything, 0, limit) for limit in range(3)]
        rows += [(f"AR{size}", recall, everything, area, 2) for area, size in enumerate("sml", start=1)]
        self.stats = np.full(len(rows), -1.0)
        for i, (name, values, ious, area, limit) in enumerate(rows):
            values = values[ious][..., area, limit]
            if (values > -1).any():
                self.stats[i] = values[values > -1].mean()
            print(f"{name} = {self.stats[i]:.3f} (at most {self.params.maxDets[limit]} detections an image)")
