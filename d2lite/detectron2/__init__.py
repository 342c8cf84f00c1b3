"""The lite Detectron2 runtime: the part of Detectron2's public API that extensions use, in pure Python."""
from detectron2 import _absent
from detectron2._lite import NotInLiteRuntime

_absent.install()  # before anything that may ask for an absent module

from detectron2.utils.env import setup_environment  # noqa: E402

setup_environment()

__version__ = "0.6"
__runtime__ = "lite"
