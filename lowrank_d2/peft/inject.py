"""Putting methods into a model: find the targets, change their class, fill the adapter slots, freeze the rest.

A target "value_proj" is every Linear, Conv2d or torch MultiheadAttention of that name, "0.value_proj" every one whose
name ends so, "re:..." every one whose whole name matches; "qkv[q,v]" takes the thirds q and v of the rows of a packed
projection. Each must match, and each name of a rank or alpha pattern too.
"""
import logging
import re
from typing import Iterable, NamedTuple, Sequence

from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import checks
from lowrank_d2.peft.adapted import ADAPTABLE, PACKED, adapt, can_adapt, check_adaptable
from lowrank_d2.peft.adapter import Adapter, SequentialAdapter
from lowrank_d2.peft.config import Method, PeftConfig
from lowrank_d2.peft.delta import read_header
from lowrank_d2.peft.hooks import attach_hooks
from lowrank_d2.peft.method import LowRankMethod, matches
from lowrank_d2.peft.trainable import count, freeze

logger = logging.getLogger(__name__)


def inject(
    model: nn.Module, methods: Sequence[Method], train: str = "none", train_label_embedding: bool = True
) -> nn.Module:
    """Adapts `model` in place and returns it.

    Do it before the optimizer is made. Weights of the base may be loaded before or afterwards: names stay as they are.

    Args:
        methods: for example [LoRA(rank=8, targets=("qkv[q,v]",)), Adapter(repeats=2)].
        train: which base parameters train: "all", "none", and what the model's `peft_parts()` names.
        train_label_embedding: with "embeddings" and "none", the denoising label embedding trains too.

    Raises:
        ConfigError: a target that matches nothing, a model without slots, a model adapted before, an unknown part,
            something else than a list of methods.
    """
    return apply_peft(model, PeftConfig(methods, train, train_label_embedding))


def apply_peft(model: nn.Module, peft: PeftConfig) -> nn.Module:
    """Adapts `model` as `peft` says; the last line of a meta-architecture's constructor.

    With no method, TRAIN "all" and no delta, parameters, modules and names stay untouched. With a delta its header
    completes `peft`; its tensors follow when the base's weights are loaded. What holds in the end is kept as
    `model.peft_config`.

    Raises:
        ConfigError: as `inject`.
        DeltaError: the delta cannot be read, or was made by other methods.
    """
    before = getattr(model, "peft_config", None)
    if before is not None and not before.is_plain:
        raise ConfigError(f"This {type(model).__name__} is adapted already. Pass all methods in one call.")
    if peft.delta:
        peft = peft.with_header(read_header(peft.delta))
    plans = [(method, _plan(model, method)) for method in peft.methods]  # everything is checked before anything changes
    _check_disjoint(plans)
    for method, places in plans:
        for place in places:
            place.adapt(method)
    if not peft.is_plain:
        freeze(model, peft.train, peft.train_label_embedding)
    model.peft_config = peft
    if before is None:
        attach_hooks(model)
    if peft.methods and peft.train == "all":
        logger.warning(
            "MODEL.PEFT.METHODS is %s and MODEL.PEFT.TRAIN 'all': %.1f %% of the parameters train. "
            "Use 'embeddings' or 'none' to train little.",
            [method.name for method in peft.methods],
            count(model).percent_trainable,
        )
    return model


class _Place(NamedTuple):
    """A module to adapt, with the thirds of its rows if only some are meant."""

    name: str
    module: nn.Module
    packed: tuple[str, ...]

    def adapt(self, method: LowRankMethod) -> None:
        adapt(self.module, method.at(self.name), self.packed)


class _Slot(NamedTuple):
    """A module that owns an adapter slot."""

    module: nn.Module

    def adapt(self, method: Adapter) -> None:
        self.module.adapter = method.build(self.module.embed_dim, like=next(self.module.parameters()))


def _plan(model: nn.Module, method: Method) -> list:
    return _find_slots(model) if isinstance(method, Adapter) else _find_places(model, method)


def _find_slots(model: nn.Module) -> list[_Slot]:
    slots = [_Slot(module) for module in model.modules() if module._modules.get("adapter", module) is None]
    slots = [slot for slot in slots if isinstance(getattr(slot.module, "embed_dim", None), int)]
    if not slots:
        raise ConfigError(
            f"{type(model).__name__} has no place for adapters. Use another method in MODEL.PEFT.METHODS, or give its "
            "attention blocks a sub-module `adapter` (None) and an attribute `embed_dim`."
        )
    return slots


def _find_places(model: nn.Module, method: LowRankMethod) -> list[_Place]:
    targets = method.targets or (tuple(model.peft_targets()) if hasattr(model, "peft_targets") else ())
    inside_adapters = {id(m) for a in model.modules() if isinstance(a, SequentialAdapter) for m in a.modules()}
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if can_adapt(module) and id(module) not in inside_adapters
    }
    key = method.key("targets")
    if not targets:
        raise ConfigError(f"{type(model).__name__} has no targets of its own. Fill {key} from: {_listed(modules)}.")
    places: dict[int, _Place] = {}
    for target in targets:
        pattern, packed = _parse(target, key)
        found = [_Place(name, module, packed) for name, module in modules.items() if matches(name, pattern, key)]
        if not found:
            raise ConfigError(
                f"{key}: {target!r} matches no {ADAPTABLE} of {type(model).__name__}"
                f"{checks.nearest(target, _endings(modules))}. Available: {_listed(modules)}."
            )
        for place in found:
            _add(places, place, target, method)
    _check_patterns(method, [place.name for place in places.values()])
    return list(places.values())


def _add(places: dict[int, _Place], place: _Place, target: str, method: LowRankMethod) -> None:
    key = method.key("targets")
    before = places.setdefault(id(place.module), place)
    if before.packed != place.packed:
        raise ConfigError(f"{key}: {target!r} takes other rows of a module than an entry before it. Name it once.")
    try:
        check_adaptable(place.module, method, place.packed)
    except ConfigError as error:
        raise ConfigError(f"{key}: {target!r} {error}") from error


def _check_patterns(method: LowRankMethod, names: Sequence[str]) -> None:
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern, _ in getattr(method, option):
            key = method.key(option)
            if not any(matches(name, pattern, key) for name in names):
                raise ConfigError(f"{key}: {pattern!r} matches none of the targets: {_listed(names)}. Correct it.")


def _check_disjoint(plans: Sequence[tuple[Method, list]]) -> None:
    owners: dict[int, Method] = {}
    for method, places in plans:
        for place in places:
            other = owners.setdefault(id(place.module), method)
            if other is not method:
                raise ConfigError(
                    f"{method.key('targets')}: {place.name} is a target of {other.name!r} too. Give every method "
                    "TARGETS of its own."
                )


def _parse(target: str, key: str) -> tuple[str, tuple[str, ...]]:
    """'qkv[q,v]' -> ('qkv', ('q', 'v')); a name or 're:...' without brackets of q, k, v -> (target, ())."""
    match = re.fullmatch(r"(?P<name>[^\[\]]+)\[(?P<rows>[^\[\]]*)\]", target)
    if match is None or target.startswith("re:"):
        return target, ()
    rows = tuple(row.strip() for row in match["rows"].split(","))
    for row in rows:
        checks.one_of(f"{key}: in {target!r}, the row block", row, PACKED)
    return match["name"], rows


def _endings(names: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def _listed(names: Iterable[str]) -> str:
    """The names with their numbers replaced by *, each pattern once: encoder.layers.*.value_proj, ..."""
    return ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)) or "none"
