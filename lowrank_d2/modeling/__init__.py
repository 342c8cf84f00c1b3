"""Models; importing this registers them with Detectron2."""
from lowrank_d2.modeling import backbone, maskdino  # noqa: F401
