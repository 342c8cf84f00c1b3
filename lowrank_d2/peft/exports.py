"""Tensors as Hugging Face peft arranges them: slices of a packed projection as one stack, torch's attention with its
output projection, AdaLoRA without its pruned triplets; and the way back.
"""
import math
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft.adalora import AdaLoRA
from lowrank_d2.peft.adapted import Adapted, AdaptedAttention, adapted_modules
from lowrank_d2.peft.dora import DoRA, lengths
from lowrank_d2.peft.lora import LoRA
from lowrank_d2.peft.method import LowRankMethod

OUTPUT_IN_PEFT = "base_layer.out_proj"  # peft wraps the attention; what was out_proj below it stands there
OUTPUT_GAIN = 2  # peft (0.21 at the latest seen) adds the change of that projection twice; a test says if that ends
_OF_OUTPUTS = ("lora_B", "hada_w1_a", "hada_w2_a")  # (out, rank); the other tensors of a stack are (rank, ...)


@dataclass(frozen=True)
class Export:
    """One module's tensors by peft's names, and the rank and alpha that they are to be read with."""

    path: str
    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]


def export(model: nn.Module, method: LowRankMethod) -> list[Export]:
    """Everything adapted in `model`, which has this method alone.

    Raises:
        ConfigError: a module whose adaptation peft cannot say.
    """
    found = []
    for path, module in adapted_modules(model):
        check_exchangeable(path, module, method)
        found.append(_stacked(path, module))
    if isinstance(method, AdaLoRA):
        return _without_pruned(found)
    found = _with_attention(model, found)
    return [
        Export(entry.path, entry.rank, entry.alpha, _arranged(entry.tensors, method, model.get_submodule(entry.path)))
        for entry in found
    ]


def check_exchangeable(path: str, module: nn.Module, method: LowRankMethod) -> None:
    """Whether peft computes the same function with this module and method.

    Raises:
        ConfigError: saying where peft differs.
    """
    problem = ""
    if isinstance(module, nn.MultiheadAttention) and type(method) is not LoRA:
        problem = "peft adapts torch's MultiheadAttention by LoRA alone"
    elif isinstance(module, nn.Conv2d):
        kind = getattr(module, "adapted_from", type(module))
        branches = isinstance(method, LoRA)  # a second convolution beside the base's
        if kind.forward is not nn.Conv2d.forward:
            problem = f"it is a {kind.__name__}, and peft adds the change behind what that does after the convolution"
        elif module.padding_mode != "zeros":
            problem = f"peft pads with zeros, this convolution by {module.padding_mode!r}"
        elif branches and set(module.dilation) != {1}:
            problem = f"peft forgets the dilation {module.dilation}"
        elif isinstance(method, (LoRA, AdaLoRA)) and module.groups != 1:
            problem = f"peft's {method.name} knows no {module.groups} groups"
    if problem:
        raise ConfigError(
            f"{path} cannot be exchanged with peft: {problem}. Use a delta file, or leave it out of TARGETS."
        )


def kept_triplets(config: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Module -> which triplets of AdaLoRA its tensors hold, from peft's options; {} for others and before pruning."""
    if str(config.get("peft_type")).lower() != "adalora":
        return {}
    return {name.removesuffix(".lora_E"): list(kept) for name, kept in (config.get("rank_pattern") or {}).items()}


def expected_shapes(
    path: str, module: nn.Module, method: LowRankMethod, kept: Optional[Sequence[bool]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain module's tensors in peft's file."""
    weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
    created = method.create(torch.empty_like(weight, device="meta"))
    if isinstance(method, AdaLoRA):
        created = _selected(created, list(range(sum(kept))) if kept is not None else None)
    return {f"{path}.{name}": tuple(tensor.shape) for name, tensor in _arranged(created, method, module).items()}


def copy_in(path: str, module: Adapted, tensors: Mapping[str, Tensor], kept: Optional[Sequence[bool]]) -> None:
    """Copies the tensors of peft's file into an adapted module; pruned triplets become 0."""
    for name, ours in module.tensors_of(module.slices[0]).items():
        if name == "lora_kept":
            ours.copy_(torch.tensor(kept if kept is not None else [True] * len(ours)))
            continue
        theirs = tensors[f"{path}.{name}"] if f"{path}.{name}" in tensors else tensors[f"{path}.{name}.weight"]
        if kept is None or name not in ("lora_A", "lora_E", "lora_B"):
            ours.copy_(theirs.reshape(ours.shape))
            continue
        places = torch.tensor(kept).nonzero().view(-1).to(ours.device)
        ours.zero_().index_copy_(1 if name == "lora_B" else 0, places, theirs.to(ours))


def budget_options(method: AdaLoRA, entries: Sequence[Export]) -> dict[str, Any]:
    """Options of peft's AdaLoRA for what `export` returned: common rank, pattern of pruned triplets, schedule."""
    rank, alpha = _common_scale(entries)
    total = method.total_steps or 1000 + int(method.tinit) + int(method.tfinal)  # peft refuses a file without one
    first, last = method.steps(total)
    pattern = {}
    for entry in entries:
        pattern[f"{entry.path}.lora_E"] = [index < len(entry.tensors["lora_E"]) for index in range(rank)]
    if all(all(kept) for kept in pattern.values()):
        pattern = {}
    return {
        "init_r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "rank_pattern": pattern,
        "total_step": total, "tinit": first, "tfinal": total - last,
    }


def _arranged(tensors: Mapping[str, Tensor], method: LowRankMethod, module: nn.Module) -> dict[str, Tensor]:
    """With peft's names and, for convolutions, its shapes."""
    if not isinstance(method, LoRA):
        return {name: tensor for name, tensor in tensors.items() if name != "lora_kept"}
    arranged = {}
    for name, tensor in tensors.items():
        factor = name.endswith(("lora_A", "lora_B"))
        if isinstance(module, nn.Conv2d):
            shape = (-1, module.in_channels, *module.kernel_size) if name == "lora_A" else (*tensor.shape, 1, 1)
            tensor = tensor.reshape(shape if factor else (1, -1, 1, 1))
        arranged[f"{name}.weight" if factor else name] = tensor
    return arranged


def _stacked(path: str, module: Adapted) -> Export:
    """The tensors of a module; slices become one stack: the factors of the inputs above each other, the factors of the
    outputs on a diagonal of blocks, so that every slice keeps its own change and other rows get none.
    """
    method, slices = module.method, module.slices
    if not slices[0].suffix:
        return Export(path, method.rank, method.alpha, module.tensors_of(slices[0]))
    names = slices[0].tensors
    if any(name.startswith(("lokr", "hada_t")) for name in names):
        raise ConfigError(f"{path}: peft cannot adapt slices of a projection with {method.name}. Save a delta instead.")
    rank, stored = method.rank * len(slices), module.stored_weight
    stack = {}
    for name in names:
        parts = [module.tensors_of(rows)[name] for rows in slices]
        if name in _OF_OUTPUTS:
            stack[name] = parts[0].new_zeros(len(stored), rank)
            for index, (rows, part) in enumerate(zip(slices, parts)):
                stack[name][rows.start : rows.stop, index * method.rank : (index + 1) * method.rank] = part
        elif name == "lora_magnitude_vector":
            stack[name] = lengths(stored)
            for rows, part in zip(slices, parts):
                stack[name][rows.start : rows.stop] = part
        else:
            stack[name] = torch.cat(parts)
    growth = math.sqrt(len(slices)) if getattr(method, "rslora", False) else len(slices)
    if isinstance(method, AdaLoRA):
        growth = (rank + 1e-5) / (method.rank + 1e-5)
    return Export(path, rank, method.alpha * growth, stack)


def _with_attention(model: nn.Module, entries: Sequence[Export]) -> list[Export]:
    """Joins torch's attention with its output projection: peft adapts both, at one rank and scale."""
    by_path = {entry.path: entry for entry in entries}
    for path, module in model.named_modules():
        output = by_path.pop(f"{path}.out_proj", None) if isinstance(module, nn.MultiheadAttention) else None
        packed = by_path.get(path) if isinstance(module, AdaptedAttention) else None
        if output is None and packed is None:
            continue
        parts = {"": packed, f"{OUTPUT_IN_PEFT}.": output}
        leader = max((part for part in parts.values() if part), key=lambda part: part.rank)
        width, scale, tensors = module.embed_dim, _scale(model, leader), {}
        for prefix, part in parts.items():
            rows = 3 * width if prefix == "" else width
            like = leader.tensors["lora_A"]
            down, up = like.new_zeros(leader.rank, width), like.new_zeros(rows, leader.rank)
            if part is not None:
                check_exchangeable(path, module, model.peft_config.methods[0])
                down[: part.rank] = part.tensors["lora_A"]
                ratio = _scale(model, part) / scale
                up[:, : part.rank] = part.tensors["lora_B"] * (1 if math.isclose(ratio, 1) else ratio)
                up /= OUTPUT_GAIN if prefix else 1
            tensors[f"{prefix}lora_A"], tensors[f"{prefix}lora_B"] = down, up
        by_path[path] = Export(path, leader.rank, leader.alpha, tensors)
    return list(by_path.values())


def _scale(model: nn.Module, entry: Export) -> float:
    rslora = getattr(model.peft_config.methods[0], "rslora", False)
    return entry.alpha / (math.sqrt(entry.rank) if rslora else entry.rank)


def _without_pruned(entries: Sequence[Export]) -> list[Export]:
    """The triplets that are left; where scales differ, E takes up the difference, as peft has one for all."""
    rank, alpha = _common_scale(entries)
    found = []
    for entry in entries:
        tensors = dict(entry.tensors)
        ratio = (entry.alpha / (entry.rank + 1e-5)) / (alpha / (rank + 1e-5))
        if not math.isclose(ratio, 1):
            tensors["lora_E"] = tensors["lora_E"] * ratio
        kept = tensors.pop("lora_kept").nonzero().view(-1).tolist()
        found.append(Export(entry.path, entry.rank, entry.alpha, _selected(tensors, kept)))
    return found


def _common_scale(entries: Sequence[Export]) -> tuple[int, float]:
    """The largest rank, and its alpha."""
    leader = max(entries, key=lambda entry: entry.rank)
    return leader.rank, leader.alpha


def _selected(tensors: Mapping[str, Tensor], triplets: Optional[Sequence[int]]) -> dict[str, Tensor]:
    """AdaLoRA's tensors with these triplets alone; None: all."""
    if triplets is None:
        return dict(tensors)
    index = torch.tensor(triplets, dtype=torch.long, device=tensors["lora_E"].device)
    return {name: tensor.index_select(1 if name == "lora_B" else 0, index) for name, tensor in tensors.items()}
