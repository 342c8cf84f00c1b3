"""A table of everything that a bug report should say about the machine."""
import importlib
import os
import platform
import sys

import numpy as np
import torch
from tabulate import tabulate

_LIBRARIES = ("torchvision", "fvcore", "iopath", "yacs", "omegaconf", "PIL", "cv2", "pycocotools", "scipy")


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return "not installed"
    except Exception as error:  # a library built for another torch may fail in any way
        return f"installed, but broken: {error}"
    return str(getattr(module, "__version__", "installed"))


def collect_torch_env() -> str:
    """How torch was built."""
    return torch.__config__.show()


def get_env_module() -> tuple[str, str]:
    """Name and value of the variable that chooses a module for :func:`detectron2.utils.env.setup_environment`."""
    name = "DETECTRON2_ENV_MODULE"
    return name, os.environ.get(name, "<not set>")


def collect_env_info() -> str:
    """Versions and devices, as a table followed by torch's build settings."""
    import detectron2

    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("runtime", getattr(detectron2, "__runtime__", "full")),
        get_env_module(),
        ("numpy", np.__version__),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", torch.version.debug),
        ("CUDA of PyTorch", torch.version.cuda or "none"),
        ("GPU available", torch.cuda.is_available()),
    ]
    for index in range(torch.cuda.device_count()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        rows.append((f"GPU {index}", f"{torch.cuda.get_device_name(index)} (arch={capability})"))
    rows += [(name, _version(name)) for name in _LIBRARIES]
    return tabulate(rows) + "\n" + collect_torch_env()


def main() -> None:
    print(collect_env_info())


if __name__ == "__main__":
    main()
