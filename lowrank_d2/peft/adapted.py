"""A Linear whose weight is the stored one plus an update: the module keeps its place, its names and its base tensors.

The class of the module changes in place. `state_dict()` still has `weight` with the stored values and, beside it, the
method's tensors (`lora_A`, ...). Reading `module.weight` gives the effective weight, so that code which uses a Linear's
weight without calling it (torch's MultiheadAttention and its `out_proj`) is adapted too.
"""
import functools
from dataclasses import dataclass
from typing import Mapping, Optional, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_d2.errors import ConfigError

PACKED = ("q", "k", "v")  # the order in which packed projections stack their rows


@runtime_checkable
class WeightMethod(Protocol):
    """What a method that changes weights provides; `lora.py` is the model for a new file.

    Attributes:
        name: how METHODS and file headers call it.
        tensors: names of the tensors that it puts beside a weight.
        targets: which Linears it changes; () = the model's own choice.
    """

    name: str
    tensors: tuple[str, ...]
    targets: tuple[str, ...]

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        """Initial values of `tensors` for a weight (out, in), on its device."""

    def merged(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The effective weight (out, in)."""

    def forward(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], tensors: Mapping[str, Tensor], training: bool
    ) -> Tensor:
        """x (..., in) -> (..., out), as F.linear with the effective weight, in the cheapest order."""


@dataclass(frozen=True)
class Rows:
    """A range of rows of a weight that one update covers; its tensors' names end with `suffix`."""

    start: int
    stop: int
    suffix: str = ""


class AdaptedLinear:
    """Mixed in before a Linear class by `adapt_linear`, never built alone."""

    adapted_from: type  # the Linear class that the module had
    method: WeightMethod
    slices: tuple[Rows, ...]  # in ascending order, without overlap

    @property
    def stored_weight(self) -> nn.Parameter:
        """The base's own weight (out, in), which no method changes."""
        return self._parameters["weight"]

    @property
    def weight(self) -> Tensor:
        """The effective weight (out, in)."""
        stored, parts, end = self.stored_weight, [], 0
        for rows in self.slices:
            parts += [stored[end : rows.start], self.method.merged(stored[rows.start : rows.stop], self._tensors(rows))]
            end = rows.stop
        return parts[1] if self._is_whole() else torch.cat(parts + [stored[end:]])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        stored, bias = self.stored_weight, self.bias
        if self._is_whole():
            return self.method.forward(x, stored, bias, self._tensors(self.slices[0]), self.training)
        outputs, end = [], 0
        for rows in self.slices:
            if rows.start > end:
                outputs.append(F.linear(x, stored[end : rows.start], _cut(bias, end, rows.start)))
            weight, cut_bias = stored[rows.start : rows.stop], _cut(bias, rows.start, rows.stop)
            outputs.append(self.method.forward(x, weight, cut_bias, self._tensors(rows), self.training))
            end = rows.stop
        if end < len(stored):
            outputs.append(F.linear(x, stored[end:], _cut(bias, end, len(stored))))
        return torch.cat(outputs, dim=-1)

    def added_names(self) -> tuple[str, ...]:
        """Names of this module's new parameters."""
        return tuple(name + rows.suffix for rows in self.slices for name in self.method.tensors)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.method.name}"

    def __reduce_ex__(self, protocol):
        # The class is made at run time: copies and pickles find it again through the class it was made from.
        _, _, *state = super().__reduce_ex__(protocol)
        return (_blank, (self.adapted_from,), *state)

    def _is_whole(self) -> bool:
        return len(self.slices) == 1 and not self.slices[0].suffix

    def _tensors(self, rows: Rows) -> dict[str, Tensor]:
        return {name: self._parameters[name + rows.suffix] for name in self.method.tensors}


def adapt_linear(module: nn.Linear, method: WeightMethod, packed: tuple[str, ...] = ()) -> None:
    """Changes the class of `module` and gives it the method's parameters.

    Args:
        packed: of "q", "k", "v": adapt only these thirds of the rows, each with tensors of its own. () = all rows.

    Raises:
        ConfigError: it is adapted already, or its rows are no three equal blocks.
    """
    if isinstance(module, AdaptedLinear):
        raise ConfigError(
            f"a module is adapted by {module.method.name!r} already and cannot take {method.name!r} too. "
            "Give the methods different TARGETS."
        )
    rows_total = module.out_features
    if packed and rows_total % len(PACKED):
        raise ConfigError(f"{rows_total} output features are no packed q, k, v. Drop the [{','.join(packed)}].")
    third = rows_total // len(PACKED)
    slices = tuple(
        Rows(index * third, (index + 1) * third, f"_{name}") for index, name in enumerate(PACKED) if name in packed
    ) or (Rows(0, rows_total),)
    for rows in slices:
        for name, value in method.create(module.weight[rows.start : rows.stop].detach()).items():
            module.register_parameter(name + rows.suffix, nn.Parameter(value))
    module.method, module.slices = method, slices
    module.__class__ = _adapted_class(type(module))


@functools.cache
def _adapted_class(base: type) -> type:
    return type(f"Adapted{base.__name__}", (AdaptedLinear, base), {"adapted_from": base, "__module__": __name__})


def _blank(base: type) -> nn.Module:
    cls = _adapted_class(base)
    return cls.__new__(cls)


def _cut(bias: Optional[Tensor], start: int, stop: int) -> Optional[Tensor]:
    return None if bias is None else bias[start:stop]
