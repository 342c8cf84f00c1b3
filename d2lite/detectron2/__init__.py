"""The lite Detectron2 runtime: the part of Detectron2's public API that extensions use, in pure Python."""
from detectron2._lite import NotInLiteRuntime
from detectron2.utils.env import setup_environment

setup_environment()

__version__ = "0.6"
__runtime__ = "lite"

__all__ = ["NotInLiteRuntime", "setup_environment"]
