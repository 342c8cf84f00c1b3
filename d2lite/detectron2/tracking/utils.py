"""Helpers of trackers; the names exist so that code which mentions them can be imported."""
from detectron2._lite import refused

LARGE_COST_VALUE = 100000

create_prediction_pairs = refused("create_prediction_pairs", __name__)
