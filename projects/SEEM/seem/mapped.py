"""Parameters that are read now and then, or never again, need no memory: they can lie in a file that is mapped.

Until then they lie apart from everything else, so that no holes stay where they were, each too small for what follows.
"""
import mmap
import tempfile
from pathlib import Path

import torch
from torch import nn


def lay_apart(module: nn.Module) -> None:
    """Puts every larger parameter of a module on the CPU into pages of its own, which go with it; its value stays."""
    for parameter in module.parameters():
        size = parameter.numel() * parameter.element_size()
        if parameter.device.type == "cpu" and size >= mmap.PAGESIZE:
            pages = torch.frombuffer(mmap.mmap(-1, size), dtype=parameter.dtype).view(parameter.shape)
            parameter.data = pages.copy_(parameter.data)


def move_to_file(module: nn.Module) -> bool:
    """Puts the parameters of a frozen module, from any device, into a mapped temporary file; their names and values stay.

    They are then on the CPU, and are read from the file where something looks at them: a checkpoint, a fingerprint, or
    the module itself. What is written into them lies in memory again. The file has no name any more and goes with the
    process.

    Returns:
        False, and nothing was changed, where no temporary file of this size can be written.
    """
    parameters = dict(module.named_parameters())
    try:
        with tempfile.TemporaryDirectory(prefix="lowrank_d2_", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "parameters.pth")
            torch.save({name: parameter.detach().cpu() for name, parameter in parameters.items()}, path)
            mapped = torch.load(path, mmap=True, weights_only=True)
    except (OSError, RuntimeError):  # torch's archive writer hides the operating system's error
        return False
    for name, parameter in parameters.items():
        parameter.data = mapped[name]
    return True
