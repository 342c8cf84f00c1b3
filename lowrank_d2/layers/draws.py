"""Random numbers asked for by purpose, so that a training step can be recorded, and replayed in any order."""
import math
from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor

from lowrank_d2.layers.ms_deform_attn.backend import has_kernel
from lowrank_d2.layers.parallel import in_parallel

Device = Union[torch.device, str]

NUMBERS_AT_ONCE = 2**18


class Draws:
    """Fresh numbers from torch's default generator of the device; the purpose only names them.

    On the CPU, where that generator is slow and has one thread, many numbers come from SplitMix64 of a counter instead:
    torch's generator gives the seed, so that its state still decides all numbers, and the number of threads none.

    A purpose is a path such as "matcher/layer_3/image_0/point_coords" and is used once in a step.
    """

    def uniform(self, purpose: str, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        """float32 of the given shape, uniform in [0, 1)."""
        if torch.device(device).type != "cpu" or math.prod(shape) <= NUMBERS_AT_ONCE:
            return torch.rand(tuple(shape), device=device)
        seed = int(torch.randint(2**63 - 1, ()))
        return many_uniform(seed, math.prod(shape)).view(tuple(shape))

    def integers(self, purpose: str, high: int, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        """int64 of the given shape, uniform in 0 .. high - 1."""
        return torch.randint(high, tuple(shape), device=device)


def many_uniform(seed: int, count: int) -> Tensor:
    """`count` float32 numbers, uniform in [0, 1): the stream of `seed`, the same compiled and in numpy.

    SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) of a counter; 64 bits give two numbers.
    """
    if has_kernel("cpu"):
        return torch.ops.lowrank_d2.uniform_numbers(seed, count)
    numbers = np.empty(count, np.float32)

    def fill(start: int) -> None:
        own = numbers[start : start + NUMBERS_AT_ONCE]
        bits = np.arange(start // 2 + 1, start // 2 + 1 + (len(own) + 1) // 2, dtype=np.uint64)
        bits *= np.uint64(0x9E3779B97F4A7C15)
        bits += np.uint64(seed % 2**64)
        shifted = np.empty_like(bits)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            bits ^= np.right_shift(bits, np.uint64(shift), out=shifted)
            bits *= np.uint64(factor)
        halves = bits.view("<u4")[: len(own)]
        halves >>= np.uint32(8)
        np.multiply(halves, np.float32(2**-24), out=own, casting="unsafe", dtype=np.float32)

    in_parallel(fill, range(0, count, NUMBERS_AT_ONCE))
    return torch.from_numpy(numbers)


class ReplayDraws(Draws):
    """Recorded numbers: {purpose: array}.

    Raises:
        KeyError: for a purpose that was not recorded.
        ValueError: when the recorded array has another shape than the one asked for.
    """

    def __init__(self, recorded: Mapping[str, np.ndarray]):
        self.recorded = recorded

    def uniform(self, purpose: str, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        return self._replay(purpose, shape, torch.float32, device)

    def integers(self, purpose: str, high: int, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        return self._replay(purpose, shape, torch.int64, device)

    def _replay(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: Device) -> Tensor:
        if purpose not in self.recorded:
            raise KeyError(f"no recorded draw for {purpose!r}; replay a recording of the same model and batch")
        values = np.asarray(self.recorded[purpose])
        if values.shape != tuple(shape):
            raise ValueError(f"the draw {purpose!r} was recorded with shape {values.shape}, not {tuple(shape)}")
        # numpy gives an empty array strides of 0, which a view of another type refuses.
        return torch.tensor(values.ravel(), dtype=dtype, device=device).view(tuple(shape))


class RecordingDraws(Draws):
    """Passes on the numbers of another source and keeps them in `recorded`, ready for `ReplayDraws`."""

    def __init__(self, source: Draws):
        self.source = source
        self.recorded: dict[str, np.ndarray] = {}

    def uniform(self, purpose: str, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        return self._keep(purpose, self.source.uniform(purpose, shape, device))

    def integers(self, purpose: str, high: int, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        return self._keep(purpose, self.source.integers(purpose, high, shape, device))

    def _keep(self, purpose: str, values: Tensor) -> Tensor:
        self.recorded[purpose] = values.cpu().numpy().copy()
        return values
