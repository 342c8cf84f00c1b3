"""Checkpoints of others: AdaMixer's own names, those of its LORS reference data, and ImageNet backbones.

AdaMixer packs the generators of a stage into one Linear, for every sampling group a channel kernel and then a spatial
one; here each is a Linear of its own. No public code of LORS exists: its names below are those of this project's
reference data. All functions are pure: dict of tensors in, dict of tensors out.
"""
import logging
import re
from collections import defaultdict
from typing import Mapping

import torch
from torch import Tensor

from lors import swin_names
from lors.mixing import MixingSize
from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.checkpoint_names import (
    OPTIONAL, RESNET, Shapes, both_ways, check_any_match, drop_other_shapes, listing, missing_by_part, renamed,
    warn_initialised
)

PARTS = ("backbone", "neck", "queries", "decoder")
CLASS_DEPENDENT = re.compile(r"decoder\.stages\.\d+\.heads\.class_embed\.(weight|bias)")

_STAGE = "roi_head.bbox_head.{n}."
_SAMPLING = _STAGE + "sampling_n_mixing."
_MIXING = _SAMPLING + "adaptive_mixing."
# (ours, AdaMixer's), as lowrank_d2.modeling.checkpoint_names explains.
_RULES = (
    ("neck.lateral.{i}.{x}", "neck.lateral_convs.{i}.conv.{x}"),
    ("neck.norm.{x}", "neck.gn_out.{x}"),
    ("queries.content.weight", "rpn_head.init_content_features.weight"),
    ("queries.boxes", "rpn_head.init_proposal_bboxes.weight"),
    ("decoder.stages.{n}.attention.tau", _STAGE + "iof_tau"),
    ("decoder.stages.{n}.attention.qkv.{x}", _STAGE + "attention.attn.in_proj_{x}"),
    ("decoder.stages.{n}.attention.out_proj.{x}", _STAGE + "attention.attn.out_proj.{x}"),
    ("decoder.stages.{n}.attention.norm.{x}", _STAGE + "attention_norm.{x}"),
    ("decoder.stages.{n}.sampling.offsets.{x}", _SAMPLING + "sampling_offset_generator.0.{x}"),
    ("decoder.stages.{n}.mixing.norm.{x}", _SAMPLING + "norm.{x}"),
    ("decoder.stages.{n}.mixing.out_proj.{x}", _MIXING + "out_proj.{x}"),
    ("decoder.stages.{n}.ffn.linear1.{x}", _STAGE + "ffn.layers.0.0.{x}"),
    ("decoder.stages.{n}.ffn.linear2.{x}", _STAGE + "ffn.layers.1.{x}"),
    ("decoder.stages.{n}.ffn.norm.{x}", _STAGE + "ffn_norm.{x}"),
    ("decoder.stages.{n}.heads.class_hidden.{i}.{x}", _STAGE + "cls_fcs.{i}.{x}"),
    ("decoder.stages.{n}.heads.box_hidden.{i}.{x}", _STAGE + "reg_fcs.{i}.{x}"),
    ("decoder.stages.{n}.heads.class_embed.{x}", _STAGE + "fc_cls.{x}"),
    ("decoder.stages.{n}.heads.box_embed.{x}", _STAGE + "fc_reg.{x}"),
    ("decoder.shared.channel.{i}.{x}", "roi_head.lors_shared.channel.{i}.{x}"),
    ("decoder.shared.spatial.{i}.{x}", "roi_head.lors_shared.spatial.{i}.{x}"),
    ("decoder.shared.out_proj.weight", "roi_head.lors_shared.out_proj.weight"),
)
_TO_UPSTREAM, _FROM_UPSTREAM = both_ways(_RULES)
_CLASSIFIERS = ("conv1.weight", "patch_embed.proj.weight")  # what a ResNet's, or a Swin's, file of ImageNet begins with

_PACKED = re.compile(
    r"roi_head\.bbox_head\.(\d+)\.sampling_n_mixing\.adaptive_mixing\.parameter_generator\.0\.(weight|bias)"
)
_OWN_KERNEL = re.compile(r"decoder\.stages\.(\d+)\.mixing\.(channel|spatial)\.(\d+)\.generator\.(weight|bias)")
_KERNEL_PART = re.compile(r"roi_head\.bbox_head\.(\d+)\.lors_(channel|spatial)\.(\d+)\.(\d+)\.(A|B|E\.weight|E\.bias)")
_OUR_KERNEL = re.compile(r"decoder\.stages\.(\d+)\.mixing\.(channel|spatial)\.(\d+)\.(A|B|E\.weight|E\.bias)")
_PROJECTION_PART = re.compile(r"roi_head\.bbox_head\.(\d+)\.lors_out_proj\.(\d+)\.(A|B)")
_OUR_PROJECTION = re.compile(r"decoder\.stages\.(\d+)\.mixing\.out_proj\.(A|B)")
_PRIVATE_BIAS = re.compile(r"roi_head\.bbox_head\.(\d+)\.out_proj_bias")
_OUR_BIAS = re.compile(r"decoder\.stages\.(\d+)\.mixing\.out_proj\.bias")


def from_upstream(tensors: Mapping[str, Tensor], size: MixingSize) -> dict[str, Tensor]:
    """A state dict of others, or a part of one, or its gradients, under our names; ours, and nobody's, stay.

    Args:
        size: of the mixing that the packed generators belong to.

    Raises:
        CheckpointError: a packed generator of another size, or low-rank groups that are not all there.
    """
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    bare = any(name in _CLASSIFIERS for name in tensors)
    for name, tensor in tensors.items():
        if match := _PACKED.fullmatch(name):
            result |= _unpacked(f"decoder.stages.{match[1]}.mixing", match[2], tensor, size)
        elif match := _KERNEL_PART.fullmatch(name):
            stage, kind, group, k, x = match.groups()
            parts[f"decoder.stages.{stage}.mixing.{kind}.{group}.{x}"][int(k)] = tensor
        elif match := _PROJECTION_PART.fullmatch(name):
            parts[f"decoder.stages.{match[1]}.mixing.out_proj.{match[3]}"][int(match[2])] = tensor
        elif match := _PRIVATE_BIAS.fullmatch(name):
            result[f"decoder.stages.{match[1]}.mixing.out_proj.bias"] = tensor
        elif bare or name.startswith("backbone."):
            theirs = name.removeprefix("backbone.")
            ours, tensor = swin_names.converted(theirs, tensor) or (renamed(theirs, RESNET) or theirs, tensor)
            if not (bare and ours.startswith(("fc.", "head."))):  # the classifier
                result["backbone." + ours] = tensor
        else:
            result[renamed(name, _FROM_UPSTREAM) or name] = tensor
    for name, found in parts.items():
        absent = [k for k in range(max(found)) if k not in found]
        if absent:
            raise CheckpointError(
                f"{name} has {len(found)} low-rank groups, the last with number {max(found)}, but lacks group "
                f"{absent[0]}. Convert a dict that has them all."
            )
        ordered = [found[k] for k in sorted(found)]
        result[name] = torch.cat(ordered) if ".E." in name else torch.stack(ordered)
    return result


def to_upstream(tensors: Mapping[str, Tensor], size: MixingSize) -> dict[str, Tensor]:
    """A state dict of ours, a part of one, or its gradients, under AdaMixer's and the reference data's names.

    The backbone stays. The bias of an output projection counts as LORS's where the dict has something else of a shared
    projection.

    Raises:
        CheckpointError: a stage whose kernel generators are not all there, or E without the A and B of its kernel.
    """
    result: dict[str, Tensor] = {}
    kernels: dict[tuple[str, str], dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _OWN_KERNEL.fullmatch(name):
            stage, kind, group, x = match.groups()
            kernels[stage, x][int(group), kind] = tensor
        elif match := _OUR_KERNEL.fullmatch(name):
            stage, kind, group, x = match.groups()
            whole = f"roi_head.bbox_head.{stage}.lors_{kind}.{group}"
            pieces = tensor.chunk(_groups_beside(name, tensors)) if x.startswith("E") else tensor.unbind()
            result |= {f"{whole}.{k}.{x}": piece for k, piece in enumerate(pieces)}
        elif match := _OUR_PROJECTION.fullmatch(name):
            whole = f"roi_head.bbox_head.{match[1]}.lors_out_proj"
            result |= {f"{whole}.{k}.{match[2]}": piece for k, piece in enumerate(tensor)}
        elif (match := _OUR_BIAS.fullmatch(name)) and _is_private(name, tensors):
            result[f"roi_head.bbox_head.{match[1]}.out_proj_bias"] = tensor
        else:
            result[renamed(name, _TO_UPSTREAM) or name] = tensor
    for (stage, x), found in kernels.items():
        order = [(group, kind) for group in range(size.groups) for kind in ("channel", "spatial")]
        if found.keys() != set(order):
            raise CheckpointError(
                f"Stage {stage} has {len(found)} kernel generators of {len(order)}. Convert a dict that has them all."
            )
        name = f"{_MIXING.format(n=stage)}parameter_generator.0.{x}"
        result[name] = torch.cat([found[key] for key in order])
    return result


def _groups_beside(name: str, tensors: Mapping[str, Tensor]) -> int:
    """How many low-rank groups a kernel has, whose E (groups * rank^2, dim) has this name: as many as its A and B."""
    kernel = name[: name.rindex(".E.")]
    for factor in ("B", "A"):
        if f"{kernel}.{factor}" in tensors:
            return len(tensors[f"{kernel}.{factor}"])
    raise CheckpointError(
        f"{name} stands without {kernel}.B and A, so that the number of its groups is unknown. Convert a dict that has "
        "one of them."
    )


def _is_private(bias: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an output projection's bias, of this name, stands beside a weight that LORS shares."""
    projection = bias.removesuffix("bias")
    return any(name in tensors for name in ("decoder.shared.out_proj.weight", projection + "A", projection + "B"))


def check_loaded(tensors: dict[str, Tensor], expected: Shapes, logger: logging.Logger) -> list[str]:
    """Judges a state dict under our names before it is loaded; takes class-dependent tensors of other sizes out.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.

    Returns:
        what keeps its initialisation, already told to the logger.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a part of the model would be loaded incompletely.
    """
    check_any_match(tensors, expected, "AdaMixer", "Name one of AdaMixer, or of its backbone, in MODEL.WEIGHTS.")
    fatal = drop_other_shapes(tensors, expected, CLASS_DEPENDENT.fullmatch)
    if fatal:
        name, shapes = next(iter(fatal.items()))
        raise CheckpointError(
            f"{len(fatal)} tensors of the checkpoint have other shapes than the model's, first {name}: {shapes}. "
            + _ADVICE
        )
    kept, anew = [], []
    for part, missing, wholly in missing_by_part(tensors, expected, PARTS):
        surplus = [name for name in tensors if name.startswith(part + ".") and name not in expected]
        broken = [name for name in missing if not CLASS_DEPENDENT.fullmatch(name) and not OPTIONAL.fullmatch(name)]
        if wholly and not surplus:
            warn_initialised(logger, part)
        elif broken or (surplus and part != "backbone"):
            what, names = ("lacks", broken) if broken else ("has tensors beyond", surplus)
            raise CheckpointError(f"The checkpoint {what} a part of the model's {part}: {listing(names, 5)}. {_ADVICE}")
        else:
            anew += [name for name in missing if CLASS_DEPENDENT.fullmatch(name)]
        kept += missing
    warn_initialised(logger, anew=anew)
    return kept


_ADVICE = (
    "Take the config of the same model: the backbone, MODEL.ADAMIXER.SAMPLING_GROUPS and IN_POINTS (4 x 32 or 2 x 64), "
    "NUM_QUERIES and LORS must be those that it was trained with. A plain AdaMixer cannot start one with LORS."
)


def _unpacked(prefix: str, x: str, tensor: Tensor, size: MixingSize) -> dict[str, Tensor]:
    numbers = [size.channel_numbers, size.spatial_numbers]
    if len(tensor) != size.groups * sum(numbers):
        raise CheckpointError(
            f"The kernel generator of the checkpoint has {len(tensor)} outputs instead of {size.groups * sum(numbers)} "
            f"({prefix}). {_ADVICE}"
        )
    pieces = iter(tensor.split(numbers * size.groups))
    return {
        f"{prefix}.{kind}.{group}.generator.{x}": next(pieces)
        for group in range(size.groups)
        for kind in ("channel", "spatial")
    }
