"""Instance AP of Cityscapes, computed by cityscapesscripts itself.

It differs from COCO's AP: the area under the step curve instead of 101 points, objects below 100 pixels ignored, no
limit on detections, classes without ground truth left out of the mean. Numbers of the two must not be mixed.

The package reads files, so predictions are written below a temporary folder: about 0.8 s and 0.6 s an image of 2048 x
1024 for writing and matching 100 detections. All processes must run on one host.
"""

import contextlib
import importlib
import io
import logging
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Iterator, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import Image

from lowrank_d2.errors import DataError
from lowrank_d2.evaluation.spool import Spool

_MODULE = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
_IMAGE_END, _TRUTH_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_LOCK = threading.Lock()  # the package keeps its arguments in a global

logger = logging.getLogger(__name__)


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """Evaluates `instances` with pred_masks (n, H, W), pred_classes and scores at the size of the ground truth.

    `evaluate` returns, on the first process, {"segm": {"AP", "AP50", "AP-<class>" ...}} in 0..100; NaN stands for
    classes without ground truth.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        """
        Args:
            dataset_name: a registered dataset with the metadata `thing_classes` and `gt_dir`.
            output_dir: where coco_instances_results.json is written, all predictions in COCO's form with Cityscapes'
                ids of classes; None writes nothing.

        Raises:
            DataError: cityscapesscripts is not installed, or the dataset has no ground truth folder.
        """
        self._scripts = _scripts()
        self._dataset = dataset_name
        self._output_dir = output_dir
        self._folder: tempfile.TemporaryDirectory | None = None

    def reset(self) -> None:
        self._clean()
        metadata = MetadataCatalog.get(self._dataset)  # read now: the loader of the dataset may have moved gt_dir
        self._truth_folder = Path(metadata.gt_dir)
        ids = {label.name: label.id for label in importlib.import_module("cityscapesscripts.helpers.labels").labels}
        self._label_ids = [ids[name] for name in metadata.thing_classes]
        self._truth: list[str] = []
        self._spool = Spool(self._output_dir)
        if comm.is_main_process():
            self._folder = tempfile.TemporaryDirectory(prefix="lowrank_d2_cityscapes_")
        self._path = Path(comm.all_gather(self._folder.name if self._folder else None)[0])

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for record, output in zip(inputs, outputs):
            path = Path(record["file_name"])
            if not path.name.endswith(_IMAGE_END):
                raise DataError(
                    f"{path} is not named CITY_SEQUENCE_FRAME{_IMAGE_END}. "
                    f"Evaluate {self._dataset} on Cityscapes' own files."
                )
            stem = path.name[: -len(_IMAGE_END)]
            truth = self._truth_folder / path.parent.name / f"{stem}{_TRUTH_END}"
            if not truth.is_file():
                raise DataError(f"{truth} is missing. Unpack gtFine_trainvaltest.zip beside leftImg8bit.")
            self._truth.append(str(truth))
            instances = output["instances"].to("cpu")
            self._write(stem, instances)
            if self._output_dir is not None:
                self._spool.add(record["image_id"], self._as_coco(instances, record["image_id"], path.name))

    def evaluate(self) -> OrderedDict | None:
        try:
            comm.synchronize()
            gathered = comm.gather(self._truth)
            self._spool.gather()
            if not comm.is_main_process():
                return None
            truth = sorted(path for part in gathered for path in part)
            if not truth:
                logger.warning("No image of %s was predicted, so there is nothing to evaluate.", self._dataset)
                return OrderedDict()
            if self._output_dir is not None:
                self._spool.write(Path(self._output_dir, "coco_instances_results.json"))
            return self._score(truth)
        finally:
            comm.synchronize()
            self._clean()

    def _write(self, stem: str, instances: Instances) -> None:
        """One 8-bit mask a detection and the list of them; an image without detections still needs its empty list."""
        lines = []
        masks = instances.pred_masks.numpy() > 0.5
        for number, (mask, category, score) in enumerate(
            zip(masks, instances.pred_classes.tolist(), instances.scores.tolist())
        ):
            name = f"{stem}_{number}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(self._path / name, compress_level=1)
            lines.append(f"{name} {self._label_ids[category]} {score}\n")
        (self._path / f"{stem}_pred.txt").write_text("".join(lines), encoding="utf-8")

    def _as_coco(self, instances: Instances, image_id: str | int, file_name: str) -> list[dict]:
        found = instances_to_coco_json(instances, image_id)
        return [{**each, "category_id": self._label_ids[each["category_id"]], "file_name": file_name} for each in found]

    def _score(self, truth: list[str]) -> OrderedDict:
        with _cured(self._scripts, self._path) as scripts:
            predictions = [scripts.getPrediction(path, scripts.args) for path in truth]
            averages = scripts.evaluateImgLists(predictions, truth, scripts.args)["averages"]
        names = MetadataCatalog.get(self._dataset).thing_classes
        result = {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}
        result.update({f"AP-{name}": 100 * float(averages["classes"][name]["ap"]) for name in names})
        return OrderedDict(segm=result)

    def _clean(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _scripts() -> ModuleType:
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise DataError(
            f"Cityscapes is evaluated by cityscapesscripts, which cannot be imported ({error}). "
            "Install it: pip install cityscapesScripts"
        ) from error


class _OldNumpy:
    """NumPy as the package expects it: with in1d, plain ints from count_nonzero, and a sum at the end of an empty
    cumsum."""

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    @staticmethod
    def in1d(values: np.ndarray, test: object) -> np.ndarray:
        return np.isin(values, test).reshape(-1)

    @staticmethod
    def count_nonzero(values: np.ndarray) -> int:
        return int(np.count_nonzero(values))

    @staticmethod
    def cumsum(values: np.ndarray) -> np.ndarray:
        total = np.cumsum(values)
        return total if total.size else np.zeros(1, total.dtype)


def _raise(message: str) -> None:
    raise DataError(f"cityscapesscripts cannot evaluate: {message}. Check the gtFine folder.")


@contextlib.contextmanager
def _cured(scripts: ModuleType, folder: Path) -> Iterator[ModuleType]:
    """The package with `folder` as its predictions, its exits turned into errors and its stray files suppressed."""
    changes = {"np": _OldNumpy(), "writeDict2JSON": lambda *_: None, "printError": _raise}
    arguments = {
        "predictionPath": str(folder),
        "predictionWalk": None,
        "gtInstancesFile": str(folder / "ground_truth.json"),
        "JSONOutput": False,
        "colorized": False,
        "quiet": True,
    }
    with _LOCK:
        saved = {name: getattr(scripts, name) for name in changes}
        saved_arguments = {name: getattr(scripts.args, name) for name in arguments}
        try:
            for name, value in changes.items():
                setattr(scripts, name, value)
            for name, value in arguments.items():
                setattr(scripts.args, name, value)
            with contextlib.redirect_stdout(io.StringIO()):
                yield scripts
        finally:
            for name, value in saved.items():
                setattr(scripts, name, value)
            for name, value in saved_arguments.items():
                setattr(scripts.args, name, value)
