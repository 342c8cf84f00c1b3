"""Names of the original's state dict and ours, both ways, and what a checkpoint must contain to be loaded."""
import logging
import re
from typing import Iterable, Mapping

import torch
from torch import Tensor

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.checkpoint_names import (
    Shapes, both_ways, check_any_match, check_complete, drop_other_shapes, joined, listing, missing_by_part, renamed,
    same_values, warn_initialised
)

PARTS = ("backbone", "pixel_decoder", "decoder")
CLASS_DEPENDENT = frozenset(
    {"decoder.heads.class_embed.weight", "decoder.heads.class_embed.bias", "decoder.label_embedding.weight"}
)
# Not in the checkpoints of classifiers that a backbone may start from, or computed anyway.
OPTIONAL = re.compile(r"backbone\.(norm\d\.(weight|bias)|.*\.relative_position_index)")

_ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder.layers"
_PREDICTOR = "sem_seg_head.predictor"
# (ours, the original's), as checkpoint_names explains.
# `adapter_1` and `layer_1` are the original's words for the convolutions of its feature pyramid; the three names that
# end in `_adapter` are the fork's.
_RULES = (
    ("pixel_decoder.encoder.{n}.self_attn.adapter.layers.{i}.down.{x}",
     _ENCODER + ".{n}.pixel_decoder_self_attention_adapter.adapters.{i}.adapter_down.0.{x}"),
    ("pixel_decoder.encoder.{n}.self_attn.adapter.layers.{i}.up.{x}",
     _ENCODER + ".{n}.pixel_decoder_self_attention_adapter.adapters.{i}.adapter_up.{x}"),
    ("pixel_decoder.encoder.{n}.self_attn.norm.{x}", _ENCODER + ".{n}.norm1.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.norm.{x}", _ENCODER + ".{n}.norm2.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.linear{i}.{x}", _ENCODER + ".{n}.linear{i}.{x}"),
    ("pixel_decoder.encoder.{n}.self_attn.{name}.{x}", _ENCODER + ".{n}.self_attn.{name}.{x}"),
    ("pixel_decoder.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    ("pixel_decoder.input_proj.{module}.{x}", "sem_seg_head.pixel_decoder.input_proj.{module}.{x}"),
    ("pixel_decoder.mask_features.{x}", "sem_seg_head.pixel_decoder.mask_features.{x}"),
    ("decoder.layers.{n}.self_attn.adapter.layers.{i}.down.{x}",
     _PREDICTOR + ".decoder.layers.{n}.decoder_self_attn_adapter.adapters.{i}.adapter_down.0.{x}"),
    ("decoder.layers.{n}.self_attn.adapter.layers.{i}.up.{x}",
     _PREDICTOR + ".decoder.layers.{n}.decoder_self_attn_adapter.adapters.{i}.adapter_up.{x}"),
    ("decoder.layers.{n}.cross_attn.adapter.layers.{i}.down.{x}",
     _PREDICTOR + ".decoder.layers.{n}.decoder_cross_attn_adapter.adapters.{i}.adapter_down.0.{x}"),
    ("decoder.layers.{n}.cross_attn.adapter.layers.{i}.up.{x}",
     _PREDICTOR + ".decoder.layers.{n}.decoder_cross_attn_adapter.adapters.{i}.adapter_up.{x}"),
    ("decoder.layers.{n}.self_attn.norm.{x}", _PREDICTOR + ".decoder.layers.{n}.norm2.{x}"),
    ("decoder.layers.{n}.cross_attn.norm.{x}", _PREDICTOR + ".decoder.layers.{n}.norm1.{x}"),
    ("decoder.layers.{n}.ffn.norm.{x}", _PREDICTOR + ".decoder.layers.{n}.norm3.{x}"),
    ("decoder.layers.{n}.ffn.linear{i}.{x}", _PREDICTOR + ".decoder.layers.{n}.linear{i}.{x}"),
    ("decoder.layers.{n}.self_attn.out_proj.{x}", _PREDICTOR + ".decoder.layers.{n}.self_attn.out_proj.{x}"),
    ("decoder.layers.{n}.cross_attn.{name}.{x}", _PREDICTOR + ".decoder.layers.{n}.cross_attn.{name}.{x}"),
    ("decoder.ref_point_head.{module}.{x}", _PREDICTOR + ".decoder.ref_point_head.{module}.{x}"),
    ("decoder.heads.norm.{x}", _PREDICTOR + ".decoder_norm.{x}"),
    ("decoder.heads.bbox_embed.{module}.{x}", _PREDICTOR + "._bbox_embed.{module}.{x}"),
    ("decoder.heads.class_embed.{x}", _PREDICTOR + ".class_embed.{x}"),
    ("decoder.heads.mask_embed.{module}.{x}", _PREDICTOR + ".mask_embed.{module}.{x}"),
    ("decoder.selection.enc_output.{x}", _PREDICTOR + ".enc_output.{x}"),
    ("decoder.selection.enc_output_norm.{x}", _PREDICTOR + ".enc_output_norm.{x}"),
    ("decoder.label_embedding.{x}", _PREDICTOR + ".label_enc.{x}"),
    ("decoder.query_feat.{x}", _PREDICTOR + ".query_feat.{x}"),
    ("decoder.query_embed.{x}", _PREDICTOR + ".query_embed.{x}"),
    ("decoder.input_proj.{n}.{x}", _PREDICTOR + ".input_proj.{n}.{x}"),
)
_TO_UPSTREAM, _FROM_UPSTREAM = both_ways(_RULES)
_OURS_PACKED = re.compile(r"decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_UPSTREAM_PACKED = re.compile(re.escape(_PREDICTOR) + r"\.decoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)")
_OURS_PYRAMID = re.compile(r"pixel_decoder\.(lateral|output)\.(\d+)\.((?:norm\.)?(?:weight|bias))")
_UPSTREAM_PYRAMID = re.compile(r"sem_seg_head\.pixel_decoder\.(adapter|layer)_(\d+)\.((?:norm\.)?(?:weight|bias))")
_PYRAMID = {"lateral": "adapter", "output": "layer"}
_EMPTY_WEIGHT = "criterion.empty_weight"


def to_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours, or a part of one, or its gradients, under the original's names.

    q, k and v of the decoder's self-attention become one matrix. The box head appears under all names of the decoder
    layers that are there, the decoder's norm under both of its; with the label embedding comes the criterion's buffer.

    Raises:
        CheckpointError: a tensor that the original has no place for (low-rank updates: merge them first), or q, k, v
            that are not complete.
    """
    result: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _OURS_PACKED.fullmatch(name):
            layer, letter, x = match.groups()
            packed.setdefault(f"{_PREDICTOR}.decoder.layers.{layer}.self_attn.in_proj_{x}", {})[letter] = tensor
        else:
            result[_upstream_name(name)] = tensor
    result |= joined(packed, "qkv", lambda name, given: (
        f"{name} needs q, k and v, but only {sorted(given)} are there. Convert a dict that has all three."
    ))
    layers = {int(match[1]) for name in tensors if (match := re.match(r"decoder\.layers\.(\d+)\.", name))}
    for name in list(result):
        result.update((alias, result[name]) for alias in _aliases(name, layers))
    labels = tensors.get("decoder.label_embedding.weight")
    if labels is not None:
        result[_EMPTY_WEIGHT] = torch.cat((labels.new_ones(len(labels)), labels.new_full((1,), 0.1)))
    return result


def from_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original or of its adapter fork, or a part of one, or its gradients, under our names.

    Names that are nobody's stay as they are.

    Raises:
        CheckpointError: LoRA tensors of the fork, or a shared tensor whose copies differ.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "_lora_" in name:
            raise CheckpointError(
                f"{name} belongs to the adapter fork's LoRA, in which q, k and v share one low-rank matrix: another "
                "function than LoRA on q and v, so it cannot be converted. Train anew with MODEL.PEFT.METHODS ['lora']."
            )
        if name == _EMPTY_WEIGHT:
            continue
        if match := _UPSTREAM_PACKED.fullmatch(name):
            layer, x = match.groups()
            rows = len(tensor) // 3
            for i, letter in enumerate("qkv"):
                result[f"decoder.layers.{layer}.self_attn.{letter}_proj.{x}"] = tensor[i * rows : (i + 1) * rows]
            continue
        ours = _our_name(name)
        if ours in result and not same_values(result[ours], tensor):
            raise CheckpointError(
                f"{name} is one of several copies of a shared tensor ({ours}), and they differ: the file is damaged or "
                "of another model. Take the published file."
            )
        result[ours] = tensor
    return result


def is_upstream(names: Iterable[str]) -> bool:
    """Whether state dict names are the original's."""
    return any(name.startswith(("sem_seg_head.", "criterion.")) for name in names)


def check_loaded(tensors: dict[str, Tensor], expected: Shapes, logger: logging.Logger) -> list[str]:
    """Judges a state dict under our names before it is loaded; takes class-dependent tensors of other sizes out.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.

    Returns:
        what keeps its initialisation, already told to the logger: class-dependent tensors, and parts of the model that
        are wholly absent.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a part of the model would be loaded incompletely.
    """
    check_any_match(
        tensors, expected, "Mask DINO", "Name a Mask DINO checkpoint, or one of its backbone, in MODEL.WEIGHTS."
    )
    fatal = drop_other_shapes(tensors, expected, CLASS_DEPENDENT.__contains__)
    if fatal:
        raise CheckpointError(
            f"The checkpoint has other shapes than the model: {listing(map(' '.join, fatal.items()), 12)}. "
            "The config describes another model: compare the backbone, HIDDEN_DIM, both DIM_FEEDFORWARD and levels."
        )
    absent, anew, kept = [], [], []
    for part, missing, wholly in missing_by_part(tensors, expected, PARTS):
        part = part.replace("_", " ")
        if wholly:
            absent.append(part)
            kept += missing
        else:
            anew += [name for name in missing if name in CLASS_DEPENDENT]
            broken = [name for name in missing if name not in CLASS_DEPENDENT and not OPTIONAL.fullmatch(name)]
            check_complete(part, broken, limit=12)
    warn_initialised(logger, " and no ".join(absent), anew)
    return kept + anew


def _upstream_name(name: str) -> str:
    if match := _OURS_PYRAMID.fullmatch(name):
        return f"sem_seg_head.pixel_decoder.{_PYRAMID[match[1]]}_{int(match[2]) + 1}.{match[3]}"
    theirs = renamed(name, _TO_UPSTREAM)
    if theirs is None and name.startswith(("pixel_decoder.", "decoder.")):
        raise CheckpointError(
            f"{name} has no counterpart in the original Mask DINO. Merge low-rank updates first (tools/merge.py)."
        )
    return theirs or name


def _our_name(name: str) -> str:
    name = re.sub(r"predictor\.(?:decoder\.)?bbox_embed\.\d+\.", "predictor._bbox_embed.", name)
    name = name.replace("predictor.decoder.norm.", "predictor.decoder_norm.")
    if match := _UPSTREAM_PYRAMID.fullmatch(name):
        kind = next(ours for ours, upstream in _PYRAMID.items() if upstream == match[1])
        return f"pixel_decoder.{kind}.{int(match[2]) - 1}.{match[3]}"
    return renamed(name, _FROM_UPSTREAM) or name


def _aliases(name: str, layers: Iterable[int]) -> list[str]:
    """The other names under which the original's state dict has the tensor `name`."""
    if name.startswith(_PREDICTOR + ".decoder_norm."):
        return [name.replace(".decoder_norm.", ".decoder.norm.")]
    if name.startswith(_PREDICTOR + "._bbox_embed."):
        return [name.replace("._bbox_embed.", f".{where}bbox_embed.{i}.") for where in ("", "decoder.") for i in layers]
    return []
