"""Torch's layers and functions, with norm and activation inside the convolution and with empty inputs in mind."""
import functools

import torch
from torch.nn import functional as F

# Empty batches work in torch itself; these names are part of the API.
BatchNorm2d = torch.nn.BatchNorm2d
ConvTranspose2d = torch.nn.ConvTranspose2d
Linear = torch.nn.Linear
interpolate = F.interpolate


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` followed by an optional module `norm` and an optional callable `activation`."""

    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> torch.Tensor:
    """Ints as a tensor; while tracing, sizes are tensors already and stay part of the trace."""
    if torch.jit.is_tracing() and any(isinstance(size, torch.Tensor) for size in x):
        stacked = torch.stack([torch.as_tensor(size) for size in x])
        return stacked if device is None else stacked.to(device)
    return torch.as_tensor(x, device=device)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """``src`` on the device of ``dst``."""
    return src.to(dst.device)


def cat(tensors: list[torch.Tensor], dim: int = 0):
    """``torch.cat`` that returns a single tensor as it is, without a copy."""
    assert isinstance(tensors, (list, tuple)), f"cat takes a list of tensors, not {type(tensors).__name__}."
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func):
    """Let a loss averaged over nothing be 0, with a gradient, where torch gives NaN."""

    @functools.wraps(loss_func)
    def wrapped(input, target, *, reduction="mean", **kwargs):
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x):
    """The indices of the non-zero elements, one tensor a dimension; a number counts as one element."""
    return torch.atleast_1d(x).nonzero(as_tuple=True)


def check_if_dynamo_compiling() -> bool:
    """Whether ``torch.compile`` is at work on the code that asks."""
    return torch.compiler.is_compiling()


def disable_torch_compiler(func):
    """Leave ``func`` out of ``torch.compile``."""
    return torch.compiler.disable(func)
