"""Random numbers asked for by purpose, so that a training step can be recorded, and replayed in any order."""
from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor

Device = Union[torch.device, str]


class Draws:
    """Fresh numbers from torch's default generator of the device; the purpose only names them.

    A purpose is a path such as "matcher/layer_3/image_0/point_coords" and is used once in a step.
    """

    def uniform(self, purpose: str, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        """float32 of the given shape, uniform in [0, 1)."""
        return torch.rand(tuple(shape), device=device)

    def integers(self, purpose: str, high: int, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        """int64 of the given shape, uniform in 0 .. high - 1."""
        return torch.randint(high, tuple(shape), device=device)


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
        return torch.tensor(values, dtype=dtype, device=device)


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
