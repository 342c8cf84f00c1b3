"""`python -m lowrank_d2.env`: versions, the Detectron2 runtime, the deformable attention operator in use and why."""
import importlib.metadata
import platform
from pathlib import Path
from typing import Callable, Dict

import detectron2
import torch
from tabulate import tabulate

import lowrank_d2
from lowrank_d2.errors import LowRankError
from lowrank_d2.layers.ms_deform_attn import backend, build, build_cuda

_LIBRARIES = ("numpy", "scipy", "fvcore", "iopath", "pycocotools", "cityscapesScripts", "safetensors", "torchvision")


def collect() -> Dict[str, str]:
    """What a bug report needs, by name."""
    facts = {
        "lowrank_d2": f"{_version('lowrank_d2')} in {Path(lowrank_d2.__file__).parent}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "GPU": _gpus(),
        "detectron2": f"{detectron2.__version__} ({runtime()}) in {Path(detectron2.__file__).parent}",
        "ms_deform_attn": operator(backend.current),
        "ms_deform_attn_cuda": operator(backend.current_on_cuda),
        "compilers": compilers(),
    }
    facts.update({name: _version(name) for name in _LIBRARIES})
    return facts


def runtime() -> str:
    """ "lite" for the pure Python runtime of d2lite, "real" for Detectron2 itself."""
    return getattr(detectron2, "__runtime__", "real")


def operator(current: Callable[[], backend.Backend]) -> str:
    """The back end of multi-scale deformable attention, and why it is this one; compiles it where needed."""
    try:
        chosen = current()
    except LowRankError as error:
        return f"none: {error}"
    instructions = chosen.instruction_set()
    return f"{chosen.name}{f' ({instructions})' if instructions else ''}: {chosen.reason}"


def compilers() -> str:
    """What would compile the operator."""
    found = {"C++": build.compiler(), "nvcc": build_cuda.compiler()}
    return ", ".join(f"{name} {path or 'none'}" for name, path in found.items())


def _gpus() -> str:
    if not torch.cuda.is_available():
        return f"none (torch was built {'for CUDA ' + torch.version.cuda if torch.version.cuda else 'without CUDA'})"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(tabulate(collect().items(), tablefmt="plain"))
