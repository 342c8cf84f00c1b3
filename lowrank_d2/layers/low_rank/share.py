"""Turning a stack of equal layers into one with shared weights and low-rank private ones.

This is not in the LORS paper, which shares nothing but AdaMixer's mixing weights and trains from scratch: here any
Linear of any stack is shared, and trained weights may be kept as well as the rank allows.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.linear import Linear
from lowrank_d2.layers.low_rank.residual import LowRankResidualLinear


@dataclass(frozen=True)
class SharingReport:
    """What `share_stack` did.

    Attributes:
        parameters_before, parameters_after: of the whole stack, everything counted once.
        relative_error: name of each shared Linear -> for every layer |W - W'| / |W| in the Frobenius norm, W' being
            what is left of the trained W; empty for a stack that starts from scratch.
        kept: names of the Linears that stayed as they were, since sharing them would save nothing.
    """

    parameters_before: int
    parameters_after: int
    relative_error: dict[str, tuple[float, ...]]
    kept: tuple[str, ...]


def share_stack(modules: Iterable[nn.Module], rank: int, *, from_scratch: bool = False) -> SharingReport:
    """Replaces, in place, the Linears of equal layers by `LowRankResidualLinear`s around one Linear each.

    The shared Linears belong to the first layer, under the name `<linear>.shared`, so that they appear once in the
    state dict of whatever holds the layers. Biases stay private. Make the optimizer afterwards.

    Args:
        modules: layers with the same Linears, for example [layer.ffn for layer in model.decoder.layers].
        rank: of the private part, in one group.
        from_scratch: initialise all shared and private tensors anew. Otherwise the trained weights are kept: the shared
            one is their mean, the private ones the truncated singular value decomposition of the differences from it.

    Raises:
        ConfigError: a negative rank, fewer than two layers, layers that differ, share Linears already or are adapted, or no Linear to
            save anything at; nothing is changed then.
    """
    if rank < 0:
        raise ConfigError(f"The rank is {rank}. Use 0 for shared weights without private ones, or a rank above.")
    modules = list(modules)
    stacks = _stacks(modules)
    chosen = {name: linears for name, linears in stacks.items() if _saved(linears, rank) > 0}
    if not chosen:
        raise ConfigError(
            f"None of the {len(stacks)} Linears of these {len(modules)} layers becomes smaller with rank {rank}: "
            f"{', '.join(stacks) or 'there are none'}. Lower the rank, or give layers with larger Linears."
        )
    before, errors = _count(modules), {}
    for name, linears in chosen.items():
        layers = _from_scratch(linears, rank) if from_scratch else _from_trained(linears, rank)
        if not from_scratch:
            pairs = zip(linears, layers)
            errors[name] = tuple(_relative_error(linear.weight, layer.weight) for linear, layer in pairs)
        layers[0].own_shared()
        parent, _, leaf = name.rpartition(".")
        for module, layer in zip(modules, layers):
            setattr(module.get_submodule(parent), leaf, layer)
    kept = tuple(name for name in stacks if name not in chosen)
    return SharingReport(before, _count(modules), errors, kept)


def _stacks(modules: Sequence[nn.Module]) -> dict[str, list[nn.Linear]]:
    """name -> the Linear of that name in every layer."""
    if len(modules) < 2:
        raise ConfigError(f"{len(modules)} layers cannot share anything. Give all layers of the stack.")
    found = [{name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)} for module in modules]
    forms = [{name: (m.in_features, m.out_features, m.bias is None) for name, m in each.items()} for each in found]
    for number, form in enumerate(forms):
        if form != forms[0]:
            name = sorted(name for name in form.keys() | forms[0].keys() if form.get(name) != forms[0].get(name))[0]
            raise ConfigError(
                f"Layer {number} differs from layer 0 in the Linear {name!r}: {form.get(name, 'absent')} against "
                f"{forms[0].get(name, 'absent')} (inputs, outputs, without bias). Give layers of one kind."
            )
    stacks = {name: [each[name] for each in found] for name in forms[0]}
    for name, linears in stacks.items():
        if any(set(linear._parameters) != {"weight", "bias"} or linear._modules for linear in linears):
            raise ConfigError(f"The Linear {name!r} is adapted by a method. Merge or remove that first.")
        if len({id(linear.weight) for linear in linears}) < len(linears):
            raise ConfigError(f"The layers share the Linear {name!r} already. Give layers with weights of their own.")
    return stacks


def _saved(linears: Sequence[nn.Linear], rank: int) -> int:
    """Parameters that sharing saves."""
    d, h = linears[0].in_features, linears[0].out_features
    return (len(linears) - 1) * d * h - len(linears) * rank * (d + h)


def _from_scratch(linears: Sequence[nn.Linear], rank: int) -> list[LowRankResidualLinear]:
    first = linears[0]
    like = {"device": first.weight.device, "dtype": first.weight.dtype}
    shared = Linear(first.in_features, first.out_features, bias=False, **like)
    return [LowRankResidualLinear(shared, rank, bias=linear.bias is not None) for linear in linears]


@torch.no_grad()
def _from_trained(linears: Sequence[nn.Linear], rank: int) -> list[LowRankResidualLinear]:
    layers = _from_scratch(linears, rank)
    weights = torch.stack([linear.weight for linear in linears]).double()
    mean = weights.mean(0)
    layers[0].shared.weight.copy_(mean)
    for layer, linear, weight in zip(layers, linears, weights):
        if rank:
            # The root of the singular values goes to both factors, so that both learn at one pace.
            u, s, v = torch.linalg.svd(weight - mean, full_matrices=False)
            root = s[:rank].sqrt()
            layer.A.zero_()
            layer.B.zero_()
            layer.A[0, : len(root)] = (u[:, :rank] * root).T
            layer.B[0, :, : len(root)] = v[:rank].T * root
        if linear.bias is not None:
            layer.bias.copy_(linear.bias)
    return layers


@torch.no_grad()
def _relative_error(weight: Tensor, replaced: Tensor) -> float:
    return ((weight - replaced).norm() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)).item()


def _count(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())
