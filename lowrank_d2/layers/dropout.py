"""Dropout that costs a third on a CPU.

torch draws a double for every element there (unless MKL draws, on Intel's processors), one after the other, and keeps a
float an element for the backward pass. One 64-bit number decides over four elements as well (docs/benchmarks/lora_detr.md).
"""
import torch
from torch import Tensor, nn

_STEPS = 2**16  # of a probability


class Dropout(nn.Dropout):
    """torch's Dropout. In training on the CPU it drops with the nearest multiple of 2^-16 to `p`, by which it also scales,
    and keeps a byte an element for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        dropped = round(self.p * _STEPS)
        if not self.training or self.inplace or not 0 < dropped < _STEPS or not _drawn_here(x):
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()] >= dropped - _STEPS // 2
        return (x * kept.view(x.shape)).mul_(_STEPS / (_STEPS - dropped))


def _drawn_here(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
