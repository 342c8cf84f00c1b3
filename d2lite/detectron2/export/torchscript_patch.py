"""Patches under which torch.jit takes detectors; the names exist so that code which mentions them can be imported."""
from detectron2._lite import refused

freeze_training_mode = refused("freeze_training_mode", __name__)
patch_builtin_len = refused("patch_builtin_len", __name__)
patch_instances = refused("patch_instances", __name__)
patch_nonscriptable_classes = refused("patch_nonscriptable_classes", __name__)
