"""Scripting models whose Instances have known fields; the names exist so that code can import them."""
from detectron2._lite import refused

from .torchscript_patch import freeze_training_mode, patch_instances

__all__ = ["dump_torchscript_IR", "freeze_training_mode", "patch_instances", "scripting_with_instances"]

dump_torchscript_IR = refused("dump_torchscript_IR", __name__)
export_torchscript_with_instances = refused("export_torchscript_with_instances", __name__)
scripting_with_instances = refused("scripting_with_instances", __name__)
