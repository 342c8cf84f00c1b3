"""What every method that changes weights has in common; `loha.py` is the model for a new one.

A method is a frozen dataclass of options. It says which tensors stand beside a weight (`create`) and how they change it
(`update`, in the terms of `lowrank_d2.layers.low_rank`); merging, computing, files and counts follow from these two.
A convolution's weight (out, in, height, width) counts as the matrix (out, in * height * width).
"""
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Mapping, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.linear import linear
from lowrank_d2.layers.low_rank import Update, adapted_linear
from lowrank_d2.peft import checks

Factors = tuple[Tensor, ...]


@dataclass(frozen=True)
class LowRankMethod:
    """Options of all methods.

    Attributes:
        rank: width of the factors.
        alpha: the update is scaled by alpha / rank, unless the method says otherwise. None: alpha = rank.
        targets: names of modules (see `lowrank_d2.peft.inject`); () = the model's own choice.
        rank_pattern, alpha_pattern: ((name, value), ...), another rank or alpha for the targets so named; a name is
            matched as in `targets`, and the first that matches counts. Where only the rank differs, alpha stays.

    Raises:
        ConfigError: a value out of range, by the name of its configuration key.
    """

    name: ClassVar[str]
    training_only: ClassVar[tuple[str, ...]] = ("targets",)  # fields that do not change what an adapted model computes
    dropout = 0.0  # of the input, in training; the methods that have such an option make it a field

    rank: int = 8
    alpha: Optional[float] = None
    targets: tuple[str, ...] = field(default=(), kw_only=True)
    rank_pattern: tuple[tuple[str, int], ...] = field(default=(), kw_only=True)
    alpha_pattern: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)

    def __post_init__(self):
        checks.count(self.key("rank"), self.rank)
        alpha = self.rank if self.alpha is None else checks.positive(self.key("alpha"), self.alpha)
        self._set("alpha", float(alpha))
        self._set("targets", checks.words(self.key("targets"), self.targets))
        self._set("rank_pattern", checks.pairs(self.key("rank_pattern"), self.rank_pattern, checks.count))
        self._set("alpha_pattern", checks.pairs(self.key("alpha_pattern"), self.alpha_pattern, checks.positive))

    @classmethod
    def key(cls, option: str) -> str:
        """The configuration key of an option."""
        return f"MODEL.PEFT.{cls.name.upper()}.{option.upper()}"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def at(self, module_name: str) -> "LowRankMethod":
        """This method with the rank and alpha that the patterns give to one module."""
        changes = {}
        for option in ("rank", "alpha"):
            pattern = getattr(self, f"{option}_pattern")
            found = [value for name, value in pattern if matches(module_name, name, self.key(f"{option}_pattern"))]
            changes[option] = found[0] if found else getattr(self, option)
        return dataclasses.replace(self, **changes, rank_pattern=(), alpha_pattern=())

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        """Initial values of the method's tensors for a weight (out, in, ...), on its device; they leave it as it is.

        What is of a floating-point type becomes a parameter, the rest a buffer.
        """
        raise NotImplementedError

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        """The update and its factors for `weight.flatten(1)`; `rows` (out,) multiplies the change of each row."""
        raise NotImplementedError

    def draw_rows(self, weight: Tensor) -> Optional[Tensor]:
        """What a training call multiplies the change of each row (out,) with, or None for 1."""
        return None

    def from_base(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of the tensors that depend on the base, which has just been loaded under an untrained update."""
        return {}

    def merged(self, weight: Tensor, tensors: Mapping[str, Tensor], training: bool = False) -> Tensor:
        """The effective weight, as `weight` in shape and type; in training with the rows drawn for one call."""
        update, factors = self.update(weight, tensors, self.draw_rows(weight) if training else None)
        return update.merged(weight.flatten(1), *factors).view_as(weight)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], tensors: Mapping[str, Tensor], training: bool
    ) -> Tensor:
        """x (..., in) -> (..., out), as F.linear with the effective weight (out, in), in the cheapest order."""
        if training and self.dropout > 0:  # the change sees another input than the base: nothing to merge
            return linear(x, weight, bias) + self.change(F.dropout(x, self.dropout), weight, tensors)
        update, factors = self.update(weight, tensors, self.draw_rows(weight) if training else None)
        return adapted_linear(x, weight, bias, update, *factors)

    def change(self, x: Tensor, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the update adds to F.linear(x, weight)."""
        return F.linear(x, self.merged(weight, tensors) - weight)

    def _set(self, option: str, value: Any) -> None:
        object.__setattr__(self, option, value)


@dataclass(frozen=True)
class RowDropoutMethod(LowRankMethod):
    """A method whose dropout acts on the change of the weight instead of the input.

    Attributes:
        rank_dropout: probability of leaving an output of the change out, in training.
        module_dropout: probability of leaving the whole change out for a call, in training; nothing is rescaled.
    """

    training_only: ClassVar[tuple[str, ...]] = ("targets", "rank_dropout", "module_dropout")

    rank_dropout: float = field(default=0.0, kw_only=True)
    module_dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        for option in ("rank_dropout", "module_dropout"):
            self._set(option, checks.probability(self.key(option), getattr(self, option)))

    def draw_rows(self, weight: Tensor) -> Optional[Tensor]:
        if not self.rank_dropout and not self.module_dropout:
            return None
        # A change times 0 instead of none at all: every parameter keeps a gradient, which processes in parallel need.
        skipped = self.module_dropout > 0 and torch.rand(()) < self.module_dropout
        if skipped:
            return torch.zeros(len(weight), device=weight.device)
        kept = (torch.rand(len(weight), device=weight.device) > self.rank_dropout).float()
        return self.rescaled(kept) if self.rank_dropout else None

    def rescaled(self, kept: Tensor) -> Tensor:
        """What a mask of rows is brought to so that the change keeps its mean."""
        return kept / kept.mean().clamp_min(1 / len(kept))


def matches(name: str, pattern: str, key: str) -> bool:
    """Whether a module's name equals a pattern, ends with '.' and it, or matches 're:...' as a whole.

    Raises:
        ConfigError: no regular expression.
    """
    if not pattern.startswith("re:"):
        return name == pattern or name.endswith(f".{pattern}")
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise ConfigError(f"{key}: {pattern!r} is no regular expression: {error}.") from error


def wide_zeros(weight: Tensor, *shape: int) -> Tensor:
    """Zeros on the device of `weight`, in float32 or wider, as trained tensors are kept beside a base of any type."""
    return torch.zeros(shape, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
