"""Which evaluator a dataset gets, and how its results are read: AP 0..100, masks before boxes."""
import math
from typing import Any, List, Mapping, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from tabulate import tabulate

from lowrank_d2.data.datasets.catalog import Source
from lowrank_d2.data.truth import write_evaluation_json
from lowrank_d2.errors import ConfigError, TrainingError
from lowrank_d2.evaluation.cityscapes import CityscapesInstanceEvaluator
from lowrank_d2.evaluation.coco import StreamedCOCOEvaluator


def build_evaluator(dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """COCO's bbox and segm AP, or Cityscapes' own AP for datasets of its evaluator type.

    Datasets of ours are compared with their records as they were repaired, written below `output_dir`.

    Raises:
        ConfigError: an evaluator type without evaluator.
    """
    kind = check_evaluator(dataset_name)
    if kind == "coco":
        if isinstance(DatasetCatalog[dataset_name], Source):
            write_evaluation_json(dataset_name, output_dir)
        return StreamedCOCOEvaluator(dataset_name, output_dir)
    return CityscapesInstanceEvaluator(dataset_name, output_dir)


def check_evaluator(dataset_name: str) -> str:
    """The evaluator type of a dataset; writes nothing.

    Raises:
        ConfigError: an evaluator type without evaluator.
        DataError: Cityscapes without cityscapesscripts.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind == "cityscapes_instance":
        CityscapesInstanceEvaluator(dataset_name)
    elif kind != "coco":
        raise ConfigError(
            f"The dataset {dataset_name} has the evaluator type {kind!r}; this trainer knows 'coco' and "
            "'cityscapes_instance'. Override build_evaluator."
        )
    return kind


def verify_expected(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compares `results` with TEST.EXPECTED_RESULTS, on the main process.

    Raises:
        TrainingError: a value lies outside its tolerance, or was not computed.
    """
    if not cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
        return
    try:
        verify_results(cfg, results)
    except (SystemExit, AssertionError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The results are not those of TEST.EXPECTED_RESULTS {cfg.TEST.EXPECTED_RESULTS}: {dict(results)}. "
            "Each entry is [task, metric, value, tolerance]."
        ) from error


def headline_ap(results: Mapping[str, Any]) -> Optional[float]:
    """Mask AP, else box AP, else the first AP, of one dataset's results or of the first dataset's; None without any."""
    tasks = {name: metrics for name, metrics in results.items() if isinstance(metrics, Mapping)}
    for task in ["segm", "bbox", *tasks]:
        if "AP" in tasks.get(task, {}):
            value = float(tasks[task]["AP"])
            return None if math.isnan(value) else value
    for metrics in tasks.values():
        if any(isinstance(inner, Mapping) for inner in metrics.values()):
            return headline_ap(metrics)
    return None


def ap_table(results: Mapping[str, Any]) -> str:
    """A short table of AP, AP50, AP75 by task, masks first; by dataset where there are several."""
    rows = _rows(results, "")
    if not rows:
        return "no AP was computed"
    return tabulate(rows, headers=["", "AP", "AP50", "AP75"], floatfmt=".2f", missingval="-")


def _rows(results: Mapping[str, Any], prefix: str) -> List[Tuple]:
    rows: List[Tuple] = []
    for name in sorted(results, key=lambda task: (task != "segm", task != "bbox")):
        metrics = results[name]
        if isinstance(metrics, Mapping) and "AP" in metrics:
            label = prefix + {"segm": "masks", "bbox": "boxes"}.get(name, name)
            rows.append((label, *(metrics.get(key) for key in ("AP", "AP50", "AP75"))))
        elif isinstance(metrics, Mapping):
            rows += _rows(metrics, f"{prefix}{name} ")
    return rows
