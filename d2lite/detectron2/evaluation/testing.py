"""Printing results, comparing them with expected ones, flattening them."""
import logging
import math
import pprint
import sys
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping) -> None:
    """Log every task's main metrics (without those of single classes, which have a "-") for pasting into a sheet."""
    assert isinstance(results, Mapping) or not len(results), f"Results are a dict, got {type(results).__name__}."
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        values = ",".join(f"{value:.4f}" for value in main.values())
        for line in (f"Task: {task}", ",".join(main), values):
            logger.info(f"copypaste: {line}")


def verify_results(cfg, results: Mapping) -> bool:
    """True if results are within TEST.EXPECTED_RESULTS, [task, metric, value, tolerance] each; else exits with 1."""
    expected = cfg.TEST.EXPECTED_RESULTS
    wrong = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - value) > tolerance:
            wrong.append(f"{task}/{metric} is {actual}, expected {value} +- {tolerance}")
    if wrong:
        logger.error("Results are not as expected: " + "; ".join(wrong))
        logger.error("All results:\n" + pprint.pformat(results))
        sys.exit(1)
    if expected:
        logger.info("Results are as expected.")
    return True


def flatten_results_dict(results: Mapping) -> dict:
    """{"a": {"b": 1}} -> {"a/b": 1}, to any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
