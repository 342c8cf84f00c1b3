"""Saving and loading models."""
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint import catalog as _catalog  # noqa: F401  (opens catalog:// paths)
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer
