"""Delta files: what was trained and nothing else, with a header that knows its base, its methods and its classes.

A delta is a .safetensors file. Its tensors are the methods', the base parameters that trained, and those that a base
for another set of classes could not bring (the label embedding, class-dependent layers). Its header is JSON in the
metadata; it identifies the base by everything that is not in the file.
"""
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.files import PathLike, replacing
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.peft.config import Method, difference, method_fields, method_from_fields
from lowrank_d2.peft.identity import BaseIdentity, first_difference, identify
from lowrank_d2.peft.trainable import added_names, below

FORMAT = 1
MARKER = "lowrank_d2.delta"  # an empty tensor by which a delta is recognised where its header is lost
_HEADER_KEY = "lowrank_d2"


@dataclass(frozen=True)
class DeltaHeader:
    """What a delta file says about itself.

    Attributes:
        meta_architecture: class name of the model.
        methods, train, train_label_embedding: as in `PeftConfig`.
        class_names: in the order of the model's outputs.
        base: identity of the base that it was trained on.
        extra: whatever the writer added: iteration, metrics.
        tensors: state-dict names of the tensors in the file.
    """

    meta_architecture: str
    methods: tuple[Method, ...]
    train: str
    train_label_embedding: bool
    class_names: tuple[str, ...]
    base: BaseIdentity
    extra: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to_json(self) -> str:
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        del values["tensors"]  # the file lists them itself
        values["methods"] = [method_fields(method) for method in self.methods]
        values["base"] = dataclasses.asdict(self.base)
        return json.dumps({"format": FORMAT, "num_classes": self.num_classes, **values})

    @classmethod
    def from_json(cls, text: str, tensors: Sequence[str]) -> "DeltaHeader":
        """The inverse; KeyError, TypeError or ValueError for another kind of text, DeltaError for a newer format."""
        values = json.loads(text)
        version = values.pop("format")
        if version != FORMAT:
            raise DeltaError(f"it has delta format {version}, this version reads {FORMAT}. Update lowrank_d2")
        del values["num_classes"]
        values["methods"] = tuple(method_from_fields(fields) for fields in values["methods"])
        values["class_names"] = tuple(values["class_names"])
        values["base"] = BaseIdentity(**values["base"])
        return cls(**values, tensors=tuple(tensors))


def save_delta(
    model: nn.Module, path: PathLike, *, class_names: Sequence[str], extra: Optional[Mapping[str, Any]] = None
) -> DeltaHeader:
    """Writes what was trained in `model`, atomically.

    Args:
        model: adapted by `inject` or `apply_peft`, not wrapped.
        path: ends in .safetensors.
        class_names: in the order of the model's outputs.
        extra: further JSON values for the header, such as iteration and metrics.

    Raises:
        ConfigError: the model was not adapted.
        OutputError: the file cannot be written.
    """
    peft = getattr(model, "peft_config", None)
    if peft is None:
        raise ConfigError(f"This {type(model).__name__} is not adapted. Call lowrank_d2.peft.inject on it first.")
    tensors = _tensors_to_store(model, len(class_names))
    header = DeltaHeader(
        meta_architecture=type(model).__name__,
        methods=peft.methods,
        train=peft.train,
        train_label_embedding=peft.train_label_embedding,
        class_names=tuple(class_names),
        base=identify(model, tensors),
        extra=dict(extra or {}),
        tensors=tuple(tensors),
    )
    stored = {name: _as_written(tensor, getattr(torch, peft.delta_dtype)) for name, tensor in tensors.items()}
    stored[MARKER] = torch.empty(0)
    with replacing(path) as temporary:
        save_file(stored, str(temporary), metadata={_HEADER_KEY: header.to_json()})
    return header


def read_header(path: PathLike) -> DeltaHeader:
    """The header of a delta file; reads no tensor.

    Raises:
        DeltaError: missing, damaged, no delta, or of a newer format.
    """
    with _opened(path) as file:
        return _header_of(file, path)


def read_delta(path: PathLike) -> tuple[DeltaHeader, dict[str, Tensor]]:
    """Header and tensors of a delta file, on the CPU.

    Raises:
        DeltaError: as `read_header`.
    """
    with _opened(path) as file:
        header = _header_of(file, path)
        try:
            return header, {name: file.get_tensor(name) for name in header.tensors}
        except SafetensorError as error:
            raise DeltaError(_damaged(path, error)) from error


def load_delta(model: nn.Module, path: PathLike) -> DeltaHeader:
    """Copies a delta into `model`, whose base weights are loaded. Everything is checked before anything is copied.

    Raises:
        DeltaError: damaged, not finite, or made for another architecture, method, rank, alpha, class count or base.
    """
    header, tensors = read_delta(path)
    check_fits(model, header, tensors, path)
    copy_into(model, tensors)
    return header


def check_fits(model: nn.Module, header: DeltaHeader, tensors: Mapping[str, Tensor], path: PathLike) -> None:
    """Compares a delta with the model that is to take it; changes nothing.

    Raises:
        DeltaError: naming the value in the file and the one in the model, or a tensor that is not finite.
    """
    kind = type(model).__name__
    if not hasattr(model, "peft_config"):
        raise DeltaError(f"{path} needs an adapted model, this {kind} is plain. Call peft.inject on it first.")
    if header.meta_architecture != kind:
        raise DeltaError(f"{path} was made for {header.meta_architecture}, this model is {kind}. Use its config.")
    found = difference(header.methods, model.peft_config.methods)
    if found:
        raise DeltaError(f"{path} {found}. Build the model with the delta's methods, or set MODEL.PEFT.DELTA alone.")
    _check_names(model, tensors, path)
    _check_shapes(model, header, tensors, path)
    bad = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if bad:
        raise DeltaError(f"{path} holds NaN or Inf in {bad}. Take a delta from before the training went wrong.")
    ours = identify(model, tensors)
    if ours.digests != header.base.digests:
        first = first_difference(model, tensors, header.base) or "one that only the file's base has"
        raise DeltaError(
            f"{path} was trained on another base: {header.base} in the file, {ours} in the model. The first tensor "
            f"that differs is {first}. Set MODEL.WEIGHTS to the base that the delta was trained on."
        )


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors by state-dict name; names and shapes must have been checked."""
    state = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


class DeltaSet:
    """Several deltas on one base, switched by name; the base's frozen weights are never written.

    All have the model's methods and classes. What was trained since the last switch stays with the name active then.

    Example:
        deltas = DeltaSet(model)
        deltas.add("summer", "summer/delta_best.safetensors")
        deltas.add("winter", "winter/delta_best.safetensors")
        deltas.switch("winter")

    Attributes:
        active: the name switched to last, or None.
        headers: {name: header}.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.active: Optional[str] = None
        self.headers: dict[str, DeltaHeader] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, path: PathLike) -> None:
        """Reads and checks a delta file; the model stays as it is.

        Raises:
            DeltaError: it does not fit the model, holds other tensors than those added before, or the name is taken.
        """
        if name in self._tensors:
            raise DeltaError(f"The set has a delta {name!r} already. Choose another name.")
        header, tensors = read_delta(path)
        check_fits(self.model, header, tensors, path)
        for other, theirs in self._tensors.items():
            if tensors.keys() != theirs.keys():
                raise DeltaError(
                    f"{path} was trained with TRAIN {header.train!r}, {other!r} with {self.headers[other].train!r}: "
                    f"only one of them holds {min(tensors.keys() ^ theirs.keys())}. Give each a model of its own."
                )
        self.headers[name], self._tensors[name] = header, tensors

    def switch(self, name: str) -> None:
        """Makes the model compute with the delta `name`.

        Raises:
            DeltaError: no such delta.
        """
        if name not in self._tensors:
            raise DeltaError(f"There is no delta {name!r}. The set has {', '.join(sorted(self._tensors)) or 'none'}.")
        if self.active is not None:
            state = self.model.state_dict()
            self._tensors[self.active] = {key: state[key].detach().cpu().clone() for key in self._tensors[self.active]}
        copy_into(self.model, self._tensors[name])
        self.active = name


def _as_written(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU, in half precision where that is asked for and holds all values."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    half = tensor.half() if dtype == torch.float16 and tensor.is_floating_point() else tensor
    return half if half.isfinite().all() else tensor


def _tensors_to_store(model: nn.Module, num_classes: int) -> dict[str, Tensor]:
    """Sorted by state-dict name: what was added, what trains, what only a base with the same classes could bring.

    Branches that only training uses stay behind.
    """
    added = added_names(model)
    state = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad} - training_only_names(model)
    names = added | trained | {name for name in parameters if _is_class_dependent(model, name, num_classes)}
    # The statistics of a batch norm move where its weight trains.
    moving = {name.rpartition(".")[0] for name in trained - added}
    buffers = (name for name in state.keys() - parameters.keys() if name.rpartition(".")[0] in moving)
    names |= {name for name in buffers if state[name].is_floating_point()}
    return {name: state[name] for name in sorted(names)}


def _is_class_dependent(model: nn.Module, name: str, num_classes: int) -> bool:
    """The label embedding, and tensors of the embeddings with one row a class (and one for "no object").

    Another tensor with as many rows by chance is stored too, which does no harm.
    """
    parts = model.peft_parts() if hasattr(model, "peft_parts") else {}
    if below(name, parts.get("label_embedding", ())):
        return True
    return below(name, parts.get("embeddings", ())) and len(model.get_parameter(name)) in (num_classes, num_classes + 1)


def _check_names(model: nn.Module, tensors: Mapping[str, Tensor], path: PathLike) -> None:
    known = model.state_dict().keys()
    astray = sorted((tensors.keys() - known) | (added_names(model) - tensors.keys()))
    if astray:
        where, other = ("the model", "the file") if astray[0] in known else ("the file", "the model")
        raise DeltaError(
            f"{path} adapts other modules than this model does: {astray[0]} is in {where}, not in {other}. "
            "Use the configuration, TARGETS included, that the delta was trained with."
        )


def _check_shapes(model: nn.Module, header: DeltaHeader, tensors: Mapping[str, Tensor], path: PathLike) -> None:
    state, count = model.state_dict(), header.num_classes
    for name, tensor in tensors.items():
        theirs, ours = tuple(tensor.shape), tuple(state[name].shape)
        if theirs == ours:
            continue
        sides = f"{name} is {theirs} in {path} and {ours} in the model"
        if theirs[1:] == ours[1:] and theirs[0] in (count, count + 1):
            classes = ", ".join(header.class_names[:8]) + (", ..." if count > 8 else "")
            raise DeltaError(f"{sides}: the delta has {count} classes ({classes}). Set NUM_CLASSES to {count}.")
        raise DeltaError(f"{sides}. Use the configuration that the delta was trained with.")


def _opened(path: PathLike) -> Any:
    try:
        return safe_open(os.fspath(path), framework="pt")
    except FileNotFoundError as error:
        raise DeltaError(f"There is no delta file {path}. Correct MODEL.PEFT.DELTA.") from error
    except (SafetensorError, OSError) as error:
        raise DeltaError(_damaged(path, error)) from error


def _damaged(path: PathLike, error: Exception) -> str:
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    return f"{path} ({size:,} bytes) is no readable safetensors file: {error}. Copy it again, or train it again."


def _header_of(file: Any, path: PathLike) -> DeltaHeader:
    names = sorted(set(file.keys()) - {MARKER})
    try:
        return DeltaHeader.from_json((file.metadata() or {})[_HEADER_KEY], names)
    except DeltaError as error:
        raise DeltaError(f"{path}: {error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(
            f"{path} has {len(names)} tensors but no header of a delta: it is another kind of weight file. "
            "Full weights go to MODEL.WEIGHTS."
        ) from error
