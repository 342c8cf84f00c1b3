"""Comparing the installed torch with a version."""
import torch
from packaging import version


def min_torch_version(min_version: str) -> bool:
    """Whether torch is at least ``min_version``; a local build such as ``2.13.0+cpu`` counts as ``2.13.0``."""
    return version.parse(torch.__version__.partition("+")[0]) >= version.parse(min_version)
