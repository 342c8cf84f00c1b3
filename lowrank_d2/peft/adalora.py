"""AdaLoRA: W + s B (A * E), and a budget of ranks that training moves to where it matters (Zhang et al., 2303.10512).

Every row of A, value of E and column of B is a triplet. From step to step the least important triplets of all matrices
together lose their value in E, until `target_rank` a matrix are left on average; an orthogonality loss keeps the rows
of A and the columns of B apart. Between two such prunings a value may come back; after the last one the pattern stands.

Training needs two calls: `regularization(model)` among the losses, `RankBudget.step()` after every optimizer step.
"""
from dataclasses import dataclass, field
from typing import Any, ClassVar, Iterator, Mapping, NamedTuple, Optional

import torch
from torch import Tensor, nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.linear import linear
from lowrank_d2.layers.low_rank import LowRank, Update
from lowrank_d2.peft import checks
from lowrank_d2.peft.adapted import adapted_modules
from lowrank_d2.peft.method import Factors, LowRankMethod, wide_zeros

TRIPLET = ("lora_A", "lora_E", "lora_B")


@dataclass(frozen=True)
class AdaLoRA(LowRankMethod):
    """What to add to every target; further options in `LowRankMethod`. `rank` is the one that training starts with.

    Attributes:
        dropout: probability of dropping an input element of A, in training.
        target_rank: triplets a matrix that are left in the end, on average.
        tinit: optimizer steps before the first pruning; below 1, a share of all steps.
        tfinal: optimizer steps after the last pruning; below 1, a share of all steps.
        delta_t: optimizer steps between two prunings.
        beta1, beta2: how slowly the averages of importance and of its uncertainty follow.
        orthogonality: weight of the orthogonality loss.
        total_steps: optimizer steps of the whole training. None: whatever the trainer's schedule says.
    """

    name: ClassVar[str] = "adalora"
    training_only: ClassVar[tuple[str, ...]] = (
        "targets", "dropout", "target_rank", "tinit", "tfinal", "delta_t", "beta1", "beta2", "orthogonality",
        "total_steps",
    )

    rank: int = 12
    dropout: float = 0.0
    target_rank: int = field(default=8, kw_only=True)
    tinit: float = field(default=0.1, kw_only=True)
    tfinal: float = field(default=0.3, kw_only=True)
    delta_t: int = field(default=1, kw_only=True)
    beta1: float = field(default=0.85, kw_only=True)
    beta2: float = field(default=0.85, kw_only=True)
    orthogonality: float = field(default=0.5, kw_only=True)
    total_steps: Optional[int] = field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        checks.count(self.key("target_rank"), self.target_rank)
        checks.count(self.key("delta_t"), self.delta_t)
        for option in ("dropout", "beta1", "beta2"):
            self._set(option, checks.probability(self.key(option), getattr(self, option)))
        for option in ("tinit", "tfinal", "orthogonality"):
            self._set(option, checks.not_negative(self.key(option), getattr(self, option)))
        if self.total_steps is not None:
            checks.count(self.key("total_steps"), self.total_steps)

    @property
    def scale(self) -> float:
        """It stays when triplets go; the small number is peft's, for its counter of ranks may be 0."""
        return self.alpha / (self.rank + 1e-5)

    def create(self, weight: Tensor) -> dict[str, Tensor]:
        tensors = {
            "lora_A": wide_zeros(weight, self.rank, weight[0].numel()),
            "lora_E": wide_zeros(weight, self.rank, 1),
            "lora_B": wide_zeros(weight, len(weight), self.rank),
            "lora_kept": torch.ones(self.rank, dtype=torch.bool, device=weight.device),
        }
        nn.init.normal_(tensors["lora_A"], std=0.02)
        nn.init.normal_(tensors["lora_B"], std=0.02)
        return tensors

    def update(self, weight: Tensor, tensors: Mapping[str, Tensor], rows: Optional[Tensor]) -> tuple[Update, Factors]:
        return LowRank(self.scale), (tensors["lora_A"] * tensors["lora_E"], tensors["lora_B"])

    def change(self, x: Tensor, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        thin = linear(x, (tensors["lora_A"] * tensors["lora_E"]).to(x.dtype))
        return self.scale * linear(thin, tensors["lora_B"].to(x.dtype))

    def steps(self, total: int) -> tuple[int, int]:
        """The first and the last step between which the budget falls, of `total` optimizer steps.

        Raises:
            ConfigError: nothing lies between them.
        """
        initial, final = (round(x * total) if x < 1 else round(x) for x in (self.tinit, self.tfinal))
        if initial >= total - final:
            raise ConfigError(
                f"Of {total} optimizer steps, {self.key('tinit')} keeps the first {initial} and {self.key('tfinal')} "
                f"the last {final} free of pruning, so that none is left. Lower them, or train longer."
            )
        return initial, total - final


def budget_at(step: int, start: int, target: int, first: int, last: int) -> int:
    """Triplets left after an optimizer step: `start` until step `first`, `target` from `last` on, cubic between."""
    if step <= first:
        return start
    if step >= last:
        return target
    remaining = 1 - (step - first) / (last - first)
    return int((start - target) * remaining**3 + target)


def regularization(model: nn.Module) -> dict[str, Tensor]:
    """The losses that the methods in `model` ask for beside its own, by name and weighted; {} without AdaLoRA."""
    matrices = list(_matrices(model))
    if not matrices:
        return {}
    terms = []
    for matrix in matrices:
        for rows in (matrix.tensors["lora_A"], matrix.tensors["lora_B"].t()):
            identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            terms.append(torch.linalg.matrix_norm(rows @ rows.t() - identity))
    return {"loss_orthogonality": matrices[0].method.orthogonality * torch.stack(terms).mean()}


def freed_by_budget(model: nn.Module) -> int:
    """Parameters of the triplets that are gone once the budget is reached, with `target_rank` left in every matrix."""
    return sum(
        (matrix.method.rank - matrix.method.target_rank)
        * sum(matrix.tensors[name].numel() // matrix.method.rank for name in TRIPLET)
        for matrix in _matrices(model)
    )


class RankBudget:
    """Prunes the triplets of a model's AdaLoRA matrices along a schedule.

    Example:
        budget = RankBudget(model, total_steps=1000)
        for batch in batches:
            optimizer.zero_grad()
            (loss(model, batch) + sum(regularization(model).values())).backward()
            optimizer.step()
            budget.step()

    Attributes:
        done: optimizer steps so far.
    """

    def __init__(self, model: nn.Module, total_steps: int):
        """
        Args:
            total_steps: of the optimizer, where the method's own option is None.

        Raises:
            ConfigError: the model has no AdaLoRA, its schedule does not fit, or it starts below its target.
        """
        self._matrices = list(_matrices(model))
        if not self._matrices:
            raise ConfigError(f"This {type(model).__name__} has no AdaLoRA. Put 'adalora' into MODEL.PEFT.METHODS.")
        self._method = self._matrices[0].method
        self._first, self._last = self._method.steps(self._method.total_steps or total_steps)
        self._start = sum(matrix.method.rank for matrix in self._matrices)
        self._target = self._method.target_rank * len(self._matrices)
        if self._target > self._start:
            raise ConfigError(
                f"{self._method.key('target_rank')} {self._method.target_rank} makes {self._target} triplets in "
                f"{len(self._matrices)} matrices, but RANK and RANK_PATTERN start with {self._start}. Lower it."
            )
        self.done = 0
        self._importance: dict[str, Tensor] = {}
        self._uncertainty: dict[str, Tensor] = {}

    @property
    def triplets(self) -> int:
        """How many may have a value after the steps done."""
        return budget_at(self.done, self._start, self._target, self._first, self._last)

    @torch.no_grad()
    def step(self) -> None:
        """To be called after every optimizer step, while the gradients are still there.

        Raises:
            ConfigError: a tensor has no gradient.
        """
        self.done += 1
        if self.done < self._last or not self._importance and self.done == self._last:
            self._observe()  # as in peft, the last pruning goes by what was seen before it
        if self.done > self._last:
            self._apply_pattern()
        elif self.done == self._last or (self.done > self._first and self.done % self._method.delta_t == 0):
            self._prune()
        if self.done == self._last:
            for matrix in self._matrices:
                matrix.tensors["lora_kept"].copy_(matrix.tensors["lora_E"].view(-1) != 0)
            self._importance, self._uncertainty = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue; the pattern itself is in the model."""
        return {"done": self.done, "importance": dict(self._importance), "uncertainty": dict(self._uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets what `state_dict` returned."""
        device = self._matrices[0].tensors["lora_E"].device
        self.done = state["done"]
        self._importance = {name: tensor.to(device) for name, tensor in state["importance"].items()}
        self._uncertainty = {name: tensor.to(device) for name, tensor in state["uncertainty"].items()}

    def _observe(self) -> None:
        """Moves the averages of every element's importance |p dp| and of its fluctuation."""
        beta1, beta2 = self._method.beta1, self._method.beta2
        for name, parameter in self._parameters():
            if parameter.grad is None:
                key = self._method.key("targets")
                raise ConfigError(f"{name} took no part in the loss. Remove its module from {key}.")
            now = (parameter * parameter.grad).abs()
            if not now.isfinite().all():  # mixed precision skips such a step
                continue
            mean = self._importance.setdefault(name, torch.zeros_like(now))
            spread = self._uncertainty.setdefault(name, torch.zeros_like(now))
            mean.mul_(beta1).add_(now, alpha=1 - beta1)
            spread.mul_(beta2).add_((now - mean).abs(), alpha=1 - beta2)

    def _prune(self) -> None:
        """Sets E to 0 up to the (start - budget)-th smallest score of all matrices together."""
        excess = self._start - self.triplets
        if excess == 0:
            return
        scores = [self._scores(matrix) for matrix in self._matrices]
        threshold = torch.cat(scores).kthvalue(excess).values
        for matrix, score in zip(self._matrices, scores):
            matrix.tensors["lora_E"][score <= threshold] = 0

    def _scores(self, matrix: "_Matrix") -> Tensor:
        """(rank,): the value's score, and the means over its row of A and its column of B."""
        a, e, b = (self._importance[name] * self._uncertainty[name] for name in matrix.names())
        return e.view(-1) + a.mean(dim=1) + b.mean(dim=0)

    def _apply_pattern(self) -> None:
        for matrix in self._matrices:
            matrix.tensors["lora_E"][~matrix.tensors["lora_kept"]] = 0

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for matrix in self._matrices:
            yield from zip(matrix.names(), (matrix.tensors[name] for name in TRIPLET))


class _Matrix(NamedTuple):
    """One adapted weight, or range of its rows."""

    name: str
    suffix: str
    method: AdaLoRA
    tensors: Mapping[str, Tensor]

    def names(self) -> tuple[str, ...]:
        """Of A, E and B in the model."""
        return tuple(f"{self.name}.{name}{self.suffix}" for name in TRIPLET)


def _matrices(model: nn.Module) -> Iterator[_Matrix]:
    for name, module in adapted_modules(model):
        if isinstance(module.method, AdaLoRA):
            for rows in module.slices:
                yield _Matrix(name, rows.suffix, module.method, module.tensors_of(rows))
