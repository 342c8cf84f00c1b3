"""COCO's AP as Detectron2 reports it, with predictions on disk and in memory that hardly grows with the images.

Detectron2's evaluator holds every prediction until the end, copies them for each task and then matches them all at
once: 0.3 megabytes an image with 50 queries. This one gives the same results, tables and coco_instances_results.json.
It does not write instances_predictions.pth, which can only be written from memory.
"""

import contextlib
import io
import logging
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from pycocotools.coco import COCO

from lowrank_d2.errors import ConfigError, DataError
from lowrank_d2.evaluation.coco_ap import BlockwiseCOCOeval
from lowrank_d2.evaluation.spool import Spool

_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # by task, what a result must have
_BLOCK = 32  # images judged at once: their masks are in memory together

logger = logging.getLogger(__name__)


class StreamedCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator of boxes, masks and keypoints, whose predictions wait on disk.

    Outputs with "proposals" alone are left to Detectron2's, which holds them.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        """
        Args:
            dataset_name: as in Detectron2.
            output_dir: gets coco_instances_results.json; None: nothing is written there.
        """
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self._name, self._folder = dataset_name, output_dir
        self._truth: _GroundTruth | None = None

    def reset(self) -> None:
        super().reset()
        self._spool = Spool(self._folder)
        self._fields: set[str] = set()

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """See Detectron2's.

        Raises:
            ConfigError: the model has more classes than the dataset.
            OutputError: the predictions cannot be written.
        """
        for record, output in zip(inputs, outputs):
            if "instances" not in output:
                super().process([record], [output])
                continue
            self._pack_truth()
            found = instances_to_coco_json(output["instances"].to("cpu"), record["image_id"])
            self._fields.update(*found[:1])
            self._spool.add(record["image_id"], self._with_category_ids(found))

    def evaluate(self, img_ids: Sequence[int | str] | None = None) -> OrderedDict:
        """Results of the main process over `img_ids` or all images, as Detectron2's; {} from the others.

        Raises:
            DataError: an image was predicted that the ground truth does not have.
            OutputError: the results cannot be written.
        """
        if any(comm.all_gather(bool(self._predictions))):
            return super().evaluate(img_ids)
        fields = set().union(*comm.all_gather(self._fields))
        self._spool.gather()
        results: OrderedDict = OrderedDict()
        if not comm.is_main_process():
            return results
        if not self._spool.images:
            logger.warning("No image of %s was predicted, so there is nothing to evaluate.", self._name)
            return results
        if self._folder is not None:
            self._spool.write(Path(self._folder, "coco_instances_results.json"))
        if not self._do_evaluation:
            logger.info("%s has no annotations, so its predictions are written and not judged.", self._name)
            return results
        names = MetadataCatalog.get(self._name).get("thing_classes")
        for task, judged in self._judged(fields, img_ids).items():
            results[task] = self._derive_coco_results(judged, task, class_names=names)
        return results

    def _pack_truth(self) -> None:
        """Detectron2's object of the ground truth goes, once it is clear that proposals are not to be judged."""
        if self._truth is None:
            self._truth, self._coco_api = _GroundTruth(self._coco_api), None

    def _with_category_ids(self, results: list[dict]) -> list[dict]:
        """`results`, in which the dataset's category ids replace the model's class numbers."""
        ids = MetadataCatalog.get(self._name).get("thing_dataset_id_to_contiguous_id")
        if ids is None:
            return results
        by_class = {number: key for key, number in ids.items()}
        for result in results:
            if result["category_id"] not in by_class:
                raise ConfigError(
                    f"The model predicts class number {result['category_id']}, but {self._name} has {len(by_class)} "
                    "classes, numbered from 0. Give the model as many (NUM_CLASSES), or evaluate on its own dataset."
                )
            result["category_id"] = by_class[result["category_id"]]
        return results

    def _judged(self, fields: set[str], image_ids: Sequence[int | str] | None) -> dict[str, BlockwiseCOCOeval | None]:
        """By task what pycocotools computed; None without any detection, where Detectron2 gives NaN."""
        if not fields:
            return {"bbox": None}
        self._pack_truth()
        places = self._spool.index()
        unknown = [key for key in places if key not in self._truth.images]
        if unknown:
            raise DataError(
                f"Image {unknown[0]!r} was predicted, but the ground truth of {self._name} does not have it"
                f"{f', nor {len(unknown) - 1} more' if unknown[1:] else ''}. Check json_file in the dataset's metadata."
            )
        tasks = sorted(task for task, field in _FIELDS.items() if field in fields)
        judges = {task: BlockwiseCOCOeval(task, self._truth.categories) for task in tasks}
        chosen = sorted(self._truth.images if image_ids is None else self._truth.images.keys() & image_ids)
        with contextlib.redirect_stdout(None):
            for start in range(0, len(chosen), _BLOCK):
                block = chosen[start : start + _BLOCK]
                found = [self._spool.results_at(place) for key in block for place in places.get(key, ())]
                images, annotations = self._truth.of(block)
                for task, judge in judges.items():
                    judge.add(images, [dict(each) for each in annotations], _for_task(task, found))
            for judge in judges.values():
                judge.accumulate()
        for task, judge in judges.items():
            with contextlib.redirect_stdout(io.StringIO()) as summary:
                judge.summarize()
            logger.info("pycocotools' summary of %s:\n%s", task, summary.getvalue().rstrip())
        return judges


class _GroundTruth:
    """A COCO file whose images wait pickled, a quarter of the size, and come out fresh, as pycocotools changes them."""

    def __init__(self, coco: COCO):
        self.categories = list(coco.cats.values())
        self.images = {}
        for key, image in coco.imgs.items():
            size = {name: image.get(name) for name in ("id", "height", "width")}
            self.images[key] = pickle.dumps((size, coco.imgToAnns.get(key, [])))

    def of(self, image_ids: Sequence[int | str]) -> tuple[list[dict], list[dict]]:
        """The images and all their annotations."""
        images, annotations = zip(*(pickle.loads(self.images[key]) for key in image_ids))
        return list(images), [annotation for part in annotations for annotation in part]


def _for_task(task: str, found: list[list[dict]]) -> list[dict]:
    """All results of a block, copied for pycocotools to change; masks without boxes, so that the masks' areas count."""
    left_out = "bbox" if task == "segm" else None
    return [{name: result[name] for name in result if name != left_out} for results in found for result in results]
