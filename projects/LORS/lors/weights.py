"""Checkpoints of others: AdaMixer's own names, those of its LORS reference data, and ImageNet backbones.

AdaMixer packs the generators of a stage into one Linear, for every sampling group a channel kernel and then a spatial
one; here each is a Linear of its own. No public code of LORS exists: its names below are those of this project's
reference data. All functions are pure: dict of tensors in, dict of tensors out.
"""
import logging
import re
from collections import defaultdict
from typing import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lors.mixing import MixingSize
from lowrank_d2.errors import CheckpointError

PARTS = ("backbone", "neck", "queries", "decoder")
CLASS_DEPENDENT = re.compile(r"decoder\.stages\.\d+\.heads\.class_embed\.(weight|bias)")
# Not in the files that a backbone may start from, or computed anyway.
OPTIONAL = re.compile(r"backbone\.(norm\d\.(weight|bias)|.*\.(relative_position_index|num_batches_tracked))")

_STAGE = "roi_head.bbox_head.{n}."
_SAMPLING = _STAGE + "sampling_n_mixing."
_MIXING = _SAMPLING + "adaptive_mixing."
# (ours, AdaMixer's). {n} and {i} are numbers, {x} weight or bias, {s} one of the tensors of a BatchNorm.
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
# torchvision's names of a ResNet; its layer1 is res2.
_RESNET = (
    (re.compile(r"conv1\.(\w+)"), r"stem.conv1.\1"),
    (re.compile(r"bn1\.(\w+)"), r"stem.conv1.norm.\1"),
    (re.compile(r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)"), r"res{}.\2.conv\3.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)"), r"res{}.\2.conv\3.norm.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)"), r"res{}.\2.shortcut.\3"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)"), r"res{}.\2.shortcut.norm.\3"),
)
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
        CheckpointError: a packed generator of another size.
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
            ours = _backbone_name(name.removeprefix("backbone."))
            if not (bare and ours.startswith(("fc.", "head."))):  # the classifier
                result["backbone." + ours] = tensor
        else:
            result[_renamed(name, _FROM_UPSTREAM)] = tensor
    for name, found in parts.items():
        ordered = [found[k] for k in sorted(found)]
        result[name] = torch.cat(ordered) if ".E." in name else torch.stack(ordered)
    return result


def to_upstream(tensors: Mapping[str, Tensor], size: MixingSize) -> dict[str, Tensor]:
    """A state dict of ours, or its gradients, under AdaMixer's and the reference data's names; the backbone stays.

    Raises:
        CheckpointError: a stage whose kernel generators are not all there.
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
            groups = len(tensors[name.replace(f".{x}", ".B")])
            pieces = tensor.chunk(groups) if x.startswith("E") else tensor.unbind()
            result |= {f"{whole}.{k}.{x}": piece for k, piece in enumerate(pieces)}
        elif match := _OUR_PROJECTION.fullmatch(name):
            whole = f"roi_head.bbox_head.{match[1]}.lors_out_proj"
            result |= {f"{whole}.{k}.{match[2]}": piece for k, piece in enumerate(tensor)}
        elif (match := _OUR_BIAS.fullmatch(name)) and name.replace("bias", "weight") not in tensors:
            result[f"roi_head.bbox_head.{match[1]}.out_proj_bias"] = tensor
        else:
            result[_renamed(name, _TO_UPSTREAM)] = tensor
    for (stage, x), found in kernels.items():
        order = [(group, kind) for group in range(size.groups) for kind in ("channel", "spatial")]
        if found.keys() != set(order):
            raise CheckpointError(
                f"Stage {stage} has {len(found)} kernel generators of {len(order)}. Convert a dict that has them all."
            )
        name = f"{_MIXING.format(n=stage)}parameter_generator.0.{x}"
        result[name] = torch.cat([found[key] for key in order])
    return result


def check_loaded(
    tensors: dict[str, Tensor], expected: Mapping[str, Sequence[int]], logger: logging.Logger
) -> list[str]:
    """Judges a state dict under our names before it is loaded; takes class-dependent tensors of other sizes out.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.

    Returns:
        what keeps its initialisation, already told to the logger.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a part of the model would be loaded incompletely.
    """
    if not expected.keys() & tensors.keys():
        raise CheckpointError(
            f"None of the {len(tensors)} tensors of the checkpoint belongs to AdaMixer (the first is "
            f"{next(iter(tensors), 'missing')}). Name one of AdaMixer, or of its backbone, in MODEL.WEIGHTS."
        )
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != tuple(expected[name])]
    fatal = [name for name in wrong if not CLASS_DEPENDENT.fullmatch(name)]
    if fatal:
        name = fatal[0]
        raise CheckpointError(
            f"{len(fatal)} tensors of the checkpoint have other shapes than the model's, first {name}: "
            f"{tuple(tensors[name].shape)} instead of {tuple(expected[name])}. {_ADVICE}"
        )
    for name in wrong:
        del tensors[name]
    kept, anew = [], []
    for part in PARTS:
        names = [name for name in expected if name.startswith(part + ".")]
        missing = [name for name in names if name not in tensors]
        surplus = [name for name in tensors if name.startswith(part + ".") and name not in expected]
        broken = [name for name in missing if not CLASS_DEPENDENT.fullmatch(name) and not OPTIONAL.fullmatch(name)]
        if len(missing) == len(names) and not surplus:
            logger.warning("The checkpoint has no %s: it keeps its initialisation.", part)
        elif broken or (surplus and part != "backbone"):
            what, first = ("lacks", broken) if broken else ("has tensors beyond", surplus)
            raise CheckpointError(
                f"The checkpoint {what} a part of the model's {part}: {', '.join(first[:5])}"
                f"{f' and {len(first) - 5} more' if len(first) > 5 else ''}. {_ADVICE}"
            )
        else:
            anew += [name for name in missing if CLASS_DEPENDENT.fullmatch(name)]
        kept += missing
    if anew:
        logger.warning("Initialised anew, because the checkpoint has other classes: %s", ", ".join(anew))
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


def _backbone_name(name: str) -> str:
    """A tensor of torchvision's ResNet, without prefix, under Detectron2's name; others (Swin's) stay."""
    for pattern, template in _RESNET:
        if match := pattern.fullmatch(name):
            return match.expand(template.replace("{}", str(int(match[1]) + 1) if "{}" in template else ""))
    return name


def _compile(template: str) -> re.Pattern[str]:
    words = {"n": r"\d+", "i": r"\d+", "x": "weight|bias"}
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: f"(?P<{match[1]}>{words[match[1]]})", re.escape(template)))


_TO_UPSTREAM = tuple((_compile(ours), theirs) for ours, theirs in _RULES)
_FROM_UPSTREAM = tuple((_compile(theirs), ours) for ours, theirs in _RULES)


def _renamed(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            return template.format(**match.groupdict())
    return name
