"""What identifies a base model: every value of what neither trains nor depends on the classes."""
import hashlib
from dataclasses import dataclass
from typing import Iterable

import torch
from torch import Tensor, nn

from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.peft.trainable import added_names

_DIGEST_BYTES = 4  # of one tensor; a base has hundreds of them


@dataclass(frozen=True)
class BaseIdentity:
    """Digests of the tensors of a base.

    Attributes:
        fingerprint: 16 hexadecimal digits over all of them.
        tensors: how many they are.
        values: how many elements they have together.
        digests: 8 hexadecimal digits for each, in the order of their sorted names.
    """

    fingerprint: str
    tensors: int
    values: int
    digests: str

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.tensors} tensors, {self.values:,} values)"


def identify(model: nn.Module, excluded: Iterable[str]) -> BaseIdentity:
    """The identity of the base inside `model`.

    Args:
        excluded: state-dict names of what is stored in the delta. What methods added is left out in any case.
    """
    tensors = _base_tensors(model, set(excluded))
    joined = "".join(_digest(name, tensor) for name, tensor in tensors.items())
    return BaseIdentity(
        fingerprint=hashlib.blake2b(joined.encode(), digest_size=8).hexdigest(),
        tensors=len(tensors),
        values=sum(tensor.numel() for tensor in tensors.values()),
        digests=joined,
    )


def first_difference(model: nn.Module, excluded: Iterable[str], theirs: BaseIdentity) -> str:
    """The first tensor of `model`, by name, whose digest is not the one recorded; "" if only the record goes on."""
    width = 2 * _DIGEST_BYTES
    for index, (name, tensor) in enumerate(_base_tensors(model, set(excluded)).items()):
        if theirs.digests[index * width : (index + 1) * width] != _digest(name, tensor):
            return name
    return ""


def _base_tensors(model: nn.Module, excluded: set[str]) -> dict[str, Tensor]:
    """Parameters, and floating-point buffers that belong to them, sorted by name.

    A buffer (the statistics of a frozen batch norm) belongs to the base where the nearest module around it that has
    parameters has none that is excluded; the class weights of a criterion, which stand beside the heads, do not.
    """
    outside = excluded | added_names(model)
    branches = training_only_names(model)
    parameters = {name: tensor for name, tensor in model.named_parameters() if name not in outside | branches}
    with_base, with_others = _paths_above(parameters), _paths_above(outside)
    chosen = dict(parameters)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, nn.Parameter) or name in outside or not tensor.is_floating_point():
            continue
        owner = _parent(name)
        while owner and owner not in with_base and owner not in with_others:
            owner = _parent(owner)
        if owner in with_base and owner not in with_others:
            chosen[name] = tensor
    return dict(sorted(chosen.items()))


def _paths_above(names: Iterable[str]) -> set[str]:
    """'a.b.weight' -> {'a.b', 'a', ''}, for all names together."""
    paths = set()
    for name in names:
        path = name
        while path:
            path = _parent(path)
            paths.add(path)
    return paths


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _digest(name: str, tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    hasher = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=_DIGEST_BYTES)
    hasher.update(values.view(torch.uint8).numpy())
    return hasher.hexdigest()
