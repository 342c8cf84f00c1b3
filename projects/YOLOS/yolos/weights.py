"""Checkpoints of others: the original's, transformers', and ImageNet classifiers that a backbone starts from.

Our names are the original's. All functions are pure: dict of tensors in, dict of tensors out.
"""
import logging
import re
from typing import Iterable, Mapping

import torch
from torch import Tensor

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.checkpoint_names import (
    Shapes, both_ways, check_any_match, drop_other_shapes, joined, listing, renamed
)
from yolos.positions import Grid, resize_positions

CLASS_DEPENDENT = frozenset({"class_embed.layers.2.weight", "class_embed.layers.2.bias"})
POSITIONS = ("backbone.pos_embed", "backbone.mid_pos_embed")
TRANSFORMERS_EPS = 1e-12  # of the layer norms in the published config.json

# (ours, transformers'), as lowrank_d2.modeling.checkpoint_names explains.
_RULES = (
    ("backbone.cls_token", "vit.embeddings.cls_token"),
    ("backbone.det_token", "vit.embeddings.detection_tokens"),
    ("backbone.pos_embed", "vit.embeddings.position_embeddings"),
    ("backbone.mid_pos_embed", "vit.encoder.interpolation.mid_position_embeddings"),
    ("backbone.patch_embed.proj.{x}", "vit.embeddings.patch_embeddings.projection.{x}"),
    ("backbone.blocks.{n}.norm1.{x}", "vit.encoder.layer.{n}.layernorm_before.{x}"),
    ("backbone.blocks.{n}.norm2.{x}", "vit.encoder.layer.{n}.layernorm_after.{x}"),
    ("backbone.blocks.{n}.attn.proj.{x}", "vit.encoder.layer.{n}.attention.output.dense.{x}"),
    ("backbone.blocks.{n}.mlp.fc1.{x}", "vit.encoder.layer.{n}.intermediate.dense.{x}"),
    ("backbone.blocks.{n}.mlp.fc2.{x}", "vit.encoder.layer.{n}.output.dense.{x}"),
    ("backbone.norm.{x}", "vit.layernorm.{x}"),
    ("class_embed.layers.{n}.{x}", "class_labels_classifier.layers.{n}.{x}"),
    ("bbox_embed.layers.{n}.{x}", "bbox_predictor.layers.{n}.{x}"),
)
_TO_TRANSFORMERS, _FROM_TRANSFORMERS = both_ways(_RULES)
_THIRDS = ("query", "key", "value")  # from top to bottom of the packed matrix
_OUR_QKV = re.compile(r"backbone\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_THEIR_QKV = re.compile(r"vit\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")


def is_transformers(names: Iterable[str]) -> bool:
    """Whether state-dict names are those of transformers' YolosForObjectDetection."""
    return any(name.startswith(("vit.", "class_labels_classifier.", "bbox_predictor.")) for name in names)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers under our names; names that are nobody's stay.

    Raises:
        CheckpointError: an attention whose query, key and value are not all there.
    """
    result: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _THEIR_QKV.fullmatch(name):
            block, third, x = match.groups()
            packed.setdefault(f"backbone.blocks.{block}.attn.qkv.{x}", {})[third] = tensor
        else:
            result[renamed(name, _FROM_TRANSFORMERS) or name] = tensor
    return result | joined(packed, _THIRDS, lambda name, given: (
        f"{name} needs {', '.join(_THIRDS)}, but only {', '.join(given)} are in the file. Take a complete file."
    ))


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under transformers' names; low-rank updates must be merged before."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _OUR_QKV.fullmatch(name):
            block, x = match.groups()
            for third, rows in zip(_THIRDS, tensor.chunk(len(_THIRDS))):
                result[f"vit.encoder.layer.{block}.attention.attention.{third}.{x}"] = rows
        else:
            result[renamed(name, _TO_TRANSFORMERS) or name] = tensor
    return result


def is_classifier(names: Iterable[str]) -> bool:
    """Whether state-dict names are those of a plain vision transformer for classification (DeiT)."""
    names = set(names)
    return {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= names


def from_classifier(tensors: Mapping[str, Tensor], grid: Grid, det_positions: Tensor) -> dict[str, Tensor]:
    """An ImageNet classifier as the start of a YOLOS backbone; the classifier itself is left out.

    Args:
        grid: rows and columns of patches of the model's initial position embedding.
        det_positions: (1, num_det_tokens, width), kept, since the classifier has none.
    """
    result = {
        f"backbone.{name}": tensor
        for name, tensor in tensors.items()
        if name.startswith(("cls_token", "patch_embed.", "blocks.", "norm."))
    }
    positions = tensors["pos_embed"]
    side = int((positions.shape[1] - 1) ** 0.5)
    first, patches = positions[:, :1], positions[:, -side * side :]  # distilled: its second token is dropped
    whole = torch.cat((first, patches, det_positions.to(positions)), dim=1)
    result["backbone.pos_embed"] = resize_positions(whole, (side, side), grid, det_positions.shape[1])
    return result


def check_loaded(tensors: dict[str, Tensor], expected: Shapes, logger: logging.Logger) -> None:
    """Judges a state dict under our names before it is loaded; takes class-dependent tensors of other sizes out.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.

    Raises:
        CheckpointError: nothing matches, a shape differs, tensors are left over, or a part is incomplete.
    """
    check_any_match(tensors, expected, "YOLOS", "Name a YOLOS checkpoint of the authors or of transformers.")
    fatal = drop_other_shapes(tensors, expected, CLASS_DEPENDENT.__contains__)
    if fatal:
        name, shapes = next(iter(fatal.items()))
        raise CheckpointError(
            f"{len(fatal)} tensors of the checkpoint have other shapes than the model's, first {name}: {shapes}. "
            + _advice(name)
        )
    surplus = [name for name in tensors if name not in expected and _is_ours(name)]
    if surplus:
        raise CheckpointError(
            f"The checkpoint is of a larger YOLOS: {len(surplus)} tensors, first {surplus[0]}, have no place in the "
            "model. " + _advice(surplus[0])
        )
    missing = [name for name in expected if name not in tensors]
    heads = [name for name in expected if not name.startswith("backbone.")]
    # A classifier brings neither heads nor what only detection has; all other files must be complete.
    allowed = CLASS_DEPENDENT
    if not any(name in tensors for name in heads):
        allowed = {*heads, "backbone.det_token", "backbone.mid_pos_embed"}
    broken = [name for name in missing if name not in allowed]
    if broken:
        raise CheckpointError(
            f"The checkpoint has only a part of YOLOS: missing are {listing(broken, 5)}. {_advice(broken[0])}"
        )
    if missing:
        logger.warning("Initialised anew, because the checkpoint does not bring them: %s", ", ".join(missing))


def _advice(name: str) -> str:
    advice = "Take the config of the same model (yolos_ti, yolos_s, yolos_s_dwr, yolos_b), or a complete file."
    if name not in POSITIONS:
        return advice
    key = "INITIAL" if name == POSITIONS[0] else "MID"
    return f"{advice} Or was it trained for another image size? Then set MODEL.YOLOS.{key}_POSITION_SIZE."


def _is_ours(name: str) -> bool:
    """Whether a YOLOS of any size has a tensor of this name."""
    return _OUR_QKV.fullmatch(name) is not None or renamed(name, _TO_TRANSFORMERS) is not None
