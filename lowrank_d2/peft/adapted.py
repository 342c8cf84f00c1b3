"""A module whose weight is the stored one plus an update: it keeps its place, its names and its base tensors.

The class of the module changes in place. `state_dict()` still has `weight` with the stored values and, beside it, the
method's tensors (`lora_A`, ...). Reading `module.weight` gives the effective weight, so that code which uses a weight
without calling the module (torch's MultiheadAttention and its `out_proj`), and what a class does with its weight
(the norm and activation inside Detectron2's Conv2d), is adapted too.
"""
import functools
from dataclasses import dataclass
from typing import ClassVar, Iterator, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.linear import linear
from lowrank_d2.peft.method import LowRankMethod

PACKED = ("q", "k", "v")  # the order in which packed projections stack their rows


@dataclass(frozen=True)
class Rows:
    """Rows of a weight that one update covers, with the method's `tensors`; their names end with `suffix`."""

    start: int
    stop: int
    suffix: str
    tensors: tuple[str, ...]


class Adapted:
    """Mixed in before a module's class by `adapt`, never built alone."""

    weight_name: ClassVar[str] = "weight"

    adapted_from: type  # the class that the module had
    method: LowRankMethod  # with the rank and alpha of this module
    slices: tuple[Rows, ...]  # in ascending order, without overlap

    @property
    def stored_weight(self) -> nn.Parameter:
        """The base's own weight (out, in, ...), which no method changes."""
        return self._parameters[self.weight_name]

    def tensors_of(self, rows: Rows) -> dict[str, Tensor]:
        """The method's tensors for one range of rows, by their names without suffix."""
        return {name: getattr(self, name + rows.suffix) for name in rows.tensors}

    def added_names(self) -> tuple[str, ...]:
        """Names of this module's new tensors."""
        return tuple(name + rows.suffix for rows in self.slices for name in rows.tensors)

    @torch.no_grad()
    def follow_base(self) -> None:
        """Recomputes what depends on the stored weight, after another one was loaded under an untrained update."""
        for rows in self.slices:
            tensors = self.tensors_of(rows)
            for name, value in self.method.from_base(self.stored_weight[rows.start : rows.stop], tensors).items():
                tensors[name].copy_(value)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.method.name}"

    def __reduce_ex__(self, protocol):
        # The class is made at run time: copies and pickles find it again through the class it was made from.
        _, _, *state = super().__reduce_ex__(protocol)
        return (_blank, (self.adapted_from,), *state)

    def effective_weight(self, training: bool = False) -> Tensor:
        """The stored weight with every update in it; in training with the dropout of one call."""
        drawn = self.__dict__.get("weight_of_call")
        if drawn is not None:
            return drawn
        stored, parts, end = self.stored_weight, [], 0
        for rows in self.slices:
            changed = self.method.merged(stored[rows.start : rows.stop], self.tensors_of(rows), training)
            parts += [stored[end : rows.start], changed]
            end = rows.stop
        return parts[1] if self._is_whole() else torch.cat(parts + [stored[end:]])

    def _call_with(self, weight: Tensor, *args, **kwargs):
        """The forward of the module's own class, which reads its weight once or more, with this one."""
        self.__dict__["weight_of_call"] = weight
        try:
            return super().forward(*args, **kwargs)
        finally:
            del self.__dict__["weight_of_call"]

    def _is_whole(self) -> bool:
        return len(self.slices) == 1 and not self.slices[0].suffix


class AdaptedLinear(Adapted):
    """A Linear, computed in the cheapest order."""

    @property
    def weight(self) -> Tensor:
        """The effective weight (out, in)."""
        return self.effective_weight()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        stored, bias = self.stored_weight, self.bias
        if self._is_whole():
            return self.method.forward(x, stored, bias, self.tensors_of(self.slices[0]), self.training)
        outputs, end = [], 0
        for rows in self.slices:
            if rows.start > end:
                outputs.append(linear(x, stored[end : rows.start], _cut(bias, end, rows.start)))
            weight, cut_bias = stored[rows.start : rows.stop], _cut(bias, rows.start, rows.stop)
            outputs.append(self.method.forward(x, weight, cut_bias, self.tensors_of(rows), self.training))
            end = rows.stop
        if end < len(stored):
            outputs.append(linear(x, stored[end:], _cut(bias, end, len(stored))))
        return torch.cat(outputs, dim=-1)


class AdaptedConv2d(Adapted):
    """A Conv2d of any kind: what its class does before and after the convolution stays."""

    @property
    def weight(self) -> Tensor:
        """The effective weight (out, in / groups, height, width)."""
        return self.effective_weight()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        weight = self.effective_weight(self.training)
        if self.training and self.method.dropout > 0:
            # The change sees a dropped copy of the input. Copy and change stand beside input and weight as further
            # channels of each group, so that it is still one convolution, inside the class's own forward.
            stored, dropped = self.stored_weight, F.dropout(x, self.method.dropout)
            weight = torch.cat([stored, weight - stored], dim=1)
            grouped = [y.unflatten(1, (self.groups, -1)) for y in (x, dropped)]
            x = torch.cat(grouped, dim=2).flatten(1, 2)
        return self._call_with(weight, x)


class AdaptedAttention(Adapted):
    """The packed projection of a torch MultiheadAttention; its `out_proj` is a Linear, a target of its own."""

    weight_name = "in_proj_weight"

    @property
    def in_proj_weight(self) -> Tensor:
        """The effective weight (3 embed_dim, embed_dim)."""
        return self.effective_weight()

    def forward(self, *args, **kwargs) -> tuple[Tensor, Optional[Tensor]]:
        """As nn.MultiheadAttention."""
        return self._call_with(self.effective_weight(self.training), *args, **kwargs)


_KINDS = ((nn.Linear, AdaptedLinear), (nn.Conv2d, AdaptedConv2d), (nn.MultiheadAttention, AdaptedAttention))
ADAPTABLE = "Linear, Conv2d or packed MultiheadAttention"


def can_adapt(module: nn.Module) -> bool:
    """Whether `adapt` takes this kind of module."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight is not None  # None where keys or values have a width of their own
    return isinstance(module, (nn.Linear, nn.Conv2d))


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """(name, module) of everything adapted in `model`, each module once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Adapted))


def check_adaptable(module: nn.Module, method: LowRankMethod, packed: tuple[str, ...] = ()) -> None:
    """Whether `adapt` can do what is asked.

    Raises:
        ConfigError: saying why it cannot; the sentence begins in the middle.
    """
    if isinstance(module, Adapted):
        raise ConfigError(f"is adapted by {module.method.name!r} already. Give every method TARGETS of its own.")
    weight = module._parameters.get("in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight")
    if weight is None:
        raise ConfigError("computes its weight from other tensors (weight or spectral norm). Adapt it without them.")
    if isinstance(weight, nn.UninitializedParameter):
        raise ConfigError("is lazy and has no shape yet. Call the model once before adapting it.")
    rows = len(weight)
    if packed and rows % len(PACKED):
        raise ConfigError(
            f"takes rows of q, k and v, but {rows} output features are no three equal blocks. Drop the brackets."
        )
    if method.dropout and isinstance(module, (nn.MultiheadAttention, NonDynamicallyQuantizableLinear)):
        raise ConfigError(
            "belongs to torch's MultiheadAttention, which uses the weight without showing its input: DROPOUT "
            f"{method.dropout:g} could not act. Set it to 0, or choose other modules."
        )


def adapt(module: nn.Module, method: LowRankMethod, packed: tuple[str, ...] = ()) -> None:
    """Changes the class of `module` and gives it the method's tensors.

    Args:
        method: with the rank and alpha of this module.
        packed: of "q", "k", "v": adapt only these thirds of the rows, each with tensors of its own. () = all rows.

    Raises:
        ConfigError: as `check_adaptable`.
    """
    check_adaptable(module, method, packed)
    mixin = next(mixin for kind, mixin in _KINDS if isinstance(module, kind))
    weight = module._parameters[mixin.weight_name]
    third = len(weight) // len(PACKED)
    ranges = [(i * third, (i + 1) * third, f"_{name}") for i, name in enumerate(PACKED) if name in packed]
    slices = []
    for start, stop, suffix in ranges or [(0, len(weight), "")]:
        created = method.create(weight[start:stop].detach())
        for name, value in created.items():
            if value.is_floating_point():
                module.register_parameter(name + suffix, nn.Parameter(value))
            else:
                module.register_buffer(name + suffix, value)
        slices.append(Rows(start, stop, suffix, tuple(created)))
    module.method, module.slices = method, tuple(slices)
    module.__class__ = _adapted_class(type(module))


@functools.cache
def _adapted_class(base: type) -> type:
    mixin = next(mixin for kind, mixin in _KINDS if issubclass(base, kind))
    return type(f"Adapted{base.__name__}", (mixin, base), {"adapted_from": base, "__module__": __name__})


def _blank(base: type) -> nn.Module:
    cls = _adapted_class(base)
    return cls.__new__(cls)


def _cut(bias: Optional[Tensor], start: int, stop: int) -> Optional[Tensor]:
    return None if bias is None else bias[start:stop]
