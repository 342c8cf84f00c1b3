"""Which parameters train, by the model's own knowledge; how many they are; and what frozen means in train mode.

A model says what its parts are: `peft_parts() -> {"backbone", "full_head", "decoder", "embeddings", "label_embedding":
prefixes of parameter names}`, and for reports `components() -> {name: prefixes}`.
"""
from collections import defaultdict
from dataclasses import dataclass
from typing import Iterable, Iterator, Sequence, Union

from torch import nn

from lowrank_d2.errors import CheckpointError, ConfigError
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.peft.adalora import freed_by_budget
from lowrank_d2.peft.adapted import Adapted
from lowrank_d2.peft.adapter import SequentialAdapter

_TRAINED = ("embeddings", "decoder", "full_head")  # what of a model's parts TRAIN can name, from the smallest on


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, each counted once; buffers are none.

    Attributes:
        base: the model's own.
        added: by the methods, and branches that only training uses.
        trainable: of both, those that train.
        added_after_budget: what is left of `added` once AdaLoRA has reached its budget; without AdaLoRA, `added`.
        by_component: {component: {"base", "added", "trainable"}}.
    """

    base: int
    added: int
    trainable: int
    added_after_budget: int
    by_component: dict[str, dict[str, int]]

    @property
    def total(self) -> int:
        return self.base + self.added

    @property
    def percent_trainable(self) -> float:
        """Equation 10 of the paper: 100 * trainable / (base + added)."""
        return 100.0 * self.trainable / self.total if self.total else 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON; `by_component` is one number each there, base and added together, so that they sum to `total`.

        `added_after_budget` is there where it differs from `added`.
        """
        budget = {"added_after_budget": self.added_after_budget} if self.added_after_budget != self.added else {}
        return {
            "base": self.base,
            "added": self.added,
            **budget,
            "total": self.total,
            "trainable": self.trainable,
            "percent_trainable": self.percent_trainable,
            "by_component": {name: row["base"] + row["added"] for name, row in self.by_component.items()},
        }


def added_names(model: nn.Module) -> set[str]:
    """Names of the tensors that methods have put into `model`, as in its state dict."""
    names = set()
    for path, module in model.named_modules(remove_duplicate=False):
        dot = f"{path}." if path else ""
        if isinstance(module, Adapted):
            names.update(dot + name for name in module.added_names())
        elif isinstance(module, SequentialAdapter):
            names.update(dot + name for name, _ in module.named_parameters())
    return names


def freeze(model: nn.Module, train: str, train_label_embedding: bool) -> None:
    """Sets requires_grad: added parameters and branches train, of the base those that `train` names.

    "all" leaves the base as it is.

    Raises:
        ConfigError: the model has no such part.
    """
    added = added_names(model) | training_only_names(model)
    prefixes = None if train == "all" else _trained_prefixes(model, train, train_label_embedding)
    trains = defaultdict(bool)  # a parameter that stands under several names trains if one of them does
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters[id(parameter)] = parameter
        if name in added:
            trains[id(parameter)] = True
        elif prefixes is None:
            trains[id(parameter)] |= parameter.requires_grad
        else:
            trains[id(parameter)] |= below(name, prefixes)
    for key, parameter in parameters.items():
        parameter.requires_grad_(trains[key])


def below(name: str, prefixes: Union[str, Iterable[str]]) -> bool:
    """Whether `name` lies below a prefix: "decoder" or "decoder." covers "decoder.norm.bias", not "decoder_norm"."""
    prefixes = (prefixes,) if isinstance(prefixes, str) else prefixes
    return any(f"{name}.".startswith(f"{prefix.removesuffix('.')}.") for prefix in prefixes)


def frozen_subtrees(model: nn.Module) -> Iterator[nn.Module]:
    """The topmost modules below `model` that have parameters, none of which trains."""
    for child in model.children():
        flags = {parameter.requires_grad for parameter in child.parameters()}
        if flags == {False}:
            yield child
        elif flags:
            yield from frozen_subtrees(child)


def eval_frozen(model: nn.Module) -> None:
    """Puts frozen parts into eval mode, to be called after `model.train(True)`.

    A frozen part is then the same function at every step: no dropout, no drop path, no moving batch statistics.
    Of a model that says what its parts are, these are the wholly frozen subtrees. In another one a module may choose by
    its mode between losses and predictions, as Detectron2's RPN and ROI heads do, so that there only modules without
    children change, where dropout and norms are, and torch's MultiheadAttention, which has a dropout of its own.
    """
    for subtree in frozen_subtrees(model):
        chosen = [subtree] if hasattr(model, "peft_parts") else filter(_only_computes, subtree.modules())
        for module in chosen:
            module.eval()


def check_frozen(model: nn.Module) -> None:
    """To be called when the base is loaded and it is settled what trains, before the first step.

    The label embedding may stay as initialised: its rows need only differ.

    Raises:
        CheckpointError: the base did not bring parameters that do not train, such as a class head of other classes.
    """
    unloaded, parts = getattr(model, "peft_unloaded", ()), _parts(model)
    if not unloaded or model.peft_config.train == "all":
        return
    brought, random = set(), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in unloaded:
            brought.add(id(parameter))
        elif not parameter.requires_grad and not below(name, parts.get("label_embedding", ())):
            random[name] = parameter
    random = {name: tuple(parameter.shape) for name, parameter in random.items() if id(parameter) not in brought}
    if random:
        shown = ", ".join(f"{name} {shape}" for name, shape in list(random.items())[:5])
        more = f" and {len(random) - 5} more" if len(random) > 5 else ""
        trains = [part for part in _TRAINED if part in parts and all(below(name, parts[part]) for name in random)]
        raise CheckpointError(
            f"The checkpoint does not bring {len(random)} parameters in the model's shape, and with MODEL.PEFT.TRAIN "
            f"{model.peft_config.train!r} they would stay random: {shown}{more}. Has it other classes than the data? "
            f"Then use its classes, or a TRAIN with which they learn: {', '.join(map(repr, [*trains, 'all']))}."
        )


def check_gradients(model: nn.Module) -> None:
    """To be called after the first backward pass.

    Raises:
        ConfigError: a trainable parameter without a gradient; it names the first ones.
    """
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        raise ConfigError(
            f"{len(idle)} trainable parameters took no part in the loss: {shown}. "
            "Remove their modules from the TARGETS of the method, or narrow MODEL.PEFT.TRAIN."
        )


def count(model: nn.Module) -> Counts:
    """Counts parameters; works on the meta device."""
    added = added_names(model) | training_only_names(model)
    components = _components(model)
    table = {name: {"base": 0, "added": 0, "trainable": 0} for name in components}
    for name, parameter in model.named_parameters():
        owner = next((owner for owner, prefixes in components.items() if below(name, prefixes)), "other")
        row = table.setdefault(owner, {"base": 0, "added": 0, "trainable": 0})
        row["added" if name in added else "base"] += parameter.numel()
        row["trainable"] += parameter.numel() * parameter.requires_grad
    sums = {key: sum(row[key] for row in table.values()) for key in ("base", "added", "trainable")}
    return Counts(**sums, added_after_budget=sums["added"] - freed_by_budget(model), by_component=table)


def _only_computes(module: nn.Module) -> bool:
    """Whether the mode of `module` can only mean dropout or statistics."""
    return not module._modules or isinstance(module, nn.MultiheadAttention)


def _trained_prefixes(model: nn.Module, train: str, train_label_embedding: bool) -> Sequence[str]:
    parts = _parts(model)
    if train not in ("none", *parts):
        allowed = ["all", "none", *(part for part in reversed(_TRAINED) if part in parts)]
        raise ConfigError(
            f"MODEL.PEFT.TRAIN is {train!r}, but {type(model).__name__} knows only {', '.join(map(repr, allowed))}. "
            "Use one of these, or give the model a method peft_parts()."
        )
    prefixes = tuple(parts.get(train, ()))
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    if train != "none" and not any(below(name, prefixes) for name in names):
        raise ConfigError(f"MODEL.PEFT.TRAIN is {train!r}, but no parameter of {type(model).__name__} lies there.")
    if train_label_embedding and train in ("embeddings", "none"):
        prefixes += tuple(parts.get("label_embedding", ()))
    return prefixes


def _parts(model: nn.Module) -> dict[str, Sequence[str]]:
    return model.peft_parts() if hasattr(model, "peft_parts") else {}


def _components(model: nn.Module) -> dict[str, Union[str, Sequence[str]]]:
    if hasattr(model, "components"):
        return dict(model.components())
    return {name: (name,) for name, child in model.named_children() if next(child.parameters(), None) is not None}
