"""Checkpoints of the originals: their names, and what a file must contain to be loaded.

Deformable DETR, MS-DETR and LoRA-DETR share one set of names, Relation-DETR has another; both are understood by every
model. All functions are pure but for messages: dict of tensors in, dict of tensors out.
"""
import logging
import re
from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank_d2.errors import CheckpointError
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.modeling.branch_weights import settle_branches

CLASS_DEPENDENT = re.compile(r"\.(class_embed|class_head)\.(\d+\.)?(weight|bias)$|\.label_embedding\.weight$")
OPTIONAL_PARTS = ("backbone", "hybrid", "denoising")  # may be absent as a whole
# Not in the checkpoints of classifiers that a backbone may start from, or computed anyway.
_OPTIONAL = re.compile(r"backbone\.(norm\d\.(weight|bias)|.*\.relative_position_index|.*\.num_batches_tracked)")

# (the originals', ours), tried in order; regular expressions for whole names.
_LAYER = r"transformer\.(encoder|decoder)\.layers\.(\d+)\."
_RULES = (
    (r"input_proj\.(.+)", r"neck.projections.\1"),
    (r"neck\.convs\.(.+)", r"neck.projections.\1"),
    (r"transformer\.level_embeds?", "neck.level_embed"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.+)", r"encoder.layers.\1.self_attn.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.+)", r"encoder.layers.\1.ffn.norm.\2"),
    (r"transformer\.encoder\.memory_fusion\.(.+)", r"encoder.fusion.\1"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.+)", r"decoder.layers.\1.cross_attn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.+)", r"decoder.layers.\1.self_attn.norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.+)", r"decoder.layers.\1.ffn.norm.\2"),
    (_LAYER + r"linear(1|2)_lora\.lora_layers\.(\d+)\.(A|B)", r"\1.layers.\2.branches.linear\3.\4.\5"),
    (_LAYER + r"linear(1|2)\.(weight|bias)", r"\1.layers.\2.ffn.linear\3.\4"),
    (_LAYER + r"(self_attn|cross_attn)\.(.+)", r"\1.layers.\2.\3.\4"),
    (r"(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.(\d+\..+)", r"decoder.\1.\2"),
    (r"transformer\.decoder\.(class|bbox)_head\.(\d+\..+)", r"decoder.\1_embed.\2"),
    (
        r"transformer\.decoder\.position_relation_embedding\.pos_proj\.0\.(.+)",
        r"decoder.position_relation.projection.\1",
    ),
    (r"transformer\.decoder\.((?:norm|ref_point_head|query_scale)\..+)", r"decoder.\1"),
    (r"transformer\.(enc_output(?:_norm)?\..+)", r"queries.tokens.\1"),
    (r"transformer\.((?:pos_trans|pos_trans_norm|reference_points)\..+)", r"queries.\1"),
    (r"query_embed\.weight", "queries.query_embed.weight"),
    (r"transformer\.tgt_embed\.weight", "queries.content.weight"),
    (r"transformer\.hybrid_tgt_embed\.weight", "hybrid.content.weight"),
    (r"transformer\.encoder_(class_head|bbox_head)\.(.+)", r"queries.\1.\2"),
    (r"transformer\.hybrid_(class_head|bbox_head)\.(.+)", r"hybrid.\1.\2"),
    (r"denoising_generator\.label_encoder\.weight", "denoising.label_embedding.weight"),
)
_COMPILED = tuple((re.compile(theirs), ours) for theirs, ours in _RULES)
_PACKED = re.compile(r"transformer\.decoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)")
# Whole feed-forward parts as branches: 3, 4 and norm 4 are the first one's, 5, 6 and norm 5 the second one's.
_FULL_LINEAR = re.compile(r"transformer\.decoder\.layers\.(\d+)\.linear([3-9]|\d\d)\.(weight|bias)")
_FULL_NORM = re.compile(r"transformer\.decoder\.layers\.(\d+)\.norm([4-9]|\d\d)\.(weight|bias)")

# torchvision's ResNet, with what the originals put in front of it, or alone as a classifier's file.
_RESNET = re.compile(r"(?:backbone\.)?(?:0\.)?(?:body\.)?((?:conv1|bn1|layer[1-4])\..+)")
_RESNET_PARTS = (
    (r"conv1\.", "stem.conv1."),
    (r"bn1\.", "stem.conv1.norm."),
    (r"layer([1-4])\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"layer([1-4])\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"layer([1-4])\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"layer([1-4])\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
)
_SWIN = re.compile(r"(?:patch_embed|layers\.\d+|norm[0-3])\..+")  # a classifier's file
# torchvision's Swin, which is Relation-DETR's: stages and the mergings between them are counted together.
_TORCHVISION_SWIN = re.compile(r"(?:backbone\.)?(?:0\.)?(features\..+)")
_SWIN_PARTS = (
    (r"features\.0\.0\.", "patch_embed.proj."),
    (r"features\.0\.2\.", "patch_embed.norm."),
    (r"features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample."),
    (r"features\.([1357])\.(\d+)\.mlp\.0\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc1."),
    (r"features\.([1357])\.(\d+)\.mlp\.3\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc2."),
    (r"features\.([1357])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
)
# Classifiers' last layers, and what is computed anyway; torchvision's Swin has the index as a vector.
_DROPPED = re.compile(r"(?:fc|head|norm)\.(?:weight|bias)|.*\.attn_mask|.*features\..*\.relative_position_index")


def from_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of one of the originals, or a part of one, under our names; names that are nobody's stay.

    Raises:
        CheckpointError: a shared tensor whose copies differ.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _DROPPED.fullmatch(name):
            continue
        if match := _PACKED.fullmatch(name):
            for letter, rows in zip("qkv", tensor.chunk(3)):
                result[f"decoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"] = rows
            continue
        ours = our_name(name)
        if ours in result and not _equal(result[ours], tensor):
            raise CheckpointError(
                f"{name} is one of two copies of a shared tensor ({ours}), and they differ: the file is damaged, or of "
                "another model. Take the published file."
            )
        result[ours] = tensor
    return result


def our_name(name: str) -> str:
    """What we call a tensor that is not packed; names that are nobody's stay."""
    if match := _FULL_LINEAR.fullmatch(name):
        branch, which = divmod(int(match[2]) - 3, 2)
        return f"decoder.layers.{match[1]}.branches.{branch}.linear{which + 1}.{match[3]}"
    if match := _FULL_NORM.fullmatch(name):
        return f"decoder.layers.{match[1]}.branches.{int(match[2]) - 4}.norm.{match[3]}"
    for whole, parts in ((_RESNET, _RESNET_PARTS), (_TORCHVISION_SWIN, _SWIN_PARTS)):
        if match := whole.fullmatch(name):
            for pattern, ours in parts:
                renamed, count = re.subn(f"^{pattern}", ours, match[1])
                if count:
                    return f"backbone.{renamed}"
    if _SWIN.fullmatch(name):
        return f"backbone.{name}"
    for pattern, ours in _COMPILED:
        if match := pattern.fullmatch(name):
            return match.expand(ours)
    return name


def check_loaded(tensors: dict[str, Tensor], model: nn.Module, logger: logging.Logger) -> list[str]:
    """Judges a state dict under our names before it is loaded; takes out what the model has no use for.

    Branches may be absent from the file, and then keep their values, or from the model; class-dependent tensors may
    have other sizes.

    Args:
        tensors: changed in place.

    Returns:
        what else keeps its initialisation, already told to the logger.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a part of the model would be loaded incompletely.
    """
    base = model.base_shapes
    if not base.keys() & tensors.keys():
        raise CheckpointError(
            f"None of the {len(tensors)} tensors of the checkpoint belongs to {type(model).__name__} (the first is "
            f"{next(iter(tensors), 'missing')}). Name a checkpoint of this model, or of its backbone, in MODEL.WEIGHTS."
        )
    for name in [name for name in tensors if name.endswith(".num_batches_tracked") and name not in base]:
        del tensors[name]  # frozen norms do not count
    settle_branches(tensors, model, logger)
    wrong = [name for name in base if name in tensors and tuple(tensors[name].shape) != tuple(base[name])]
    fatal = [name for name in wrong if not CLASS_DEPENDENT.search(name)]
    if fatal:
        shapes = [f"{name} {tuple(tensors[name].shape)} instead of {tuple(base[name])}" for name in fatal]
        raise CheckpointError(
            f"The checkpoint has other shapes than the model: {_listing(shapes)}. The configuration describes another "
            "model: compare the backbone, HIDDEN_DIM, DIM_FEEDFORWARD, NUM_QUERIES and the numbers of layers."
        )
    for name in wrong:
        del tensors[name]
    return _missing(tensors, base, logger)


def _missing(tensors: Mapping[str, Tensor], base: Mapping[str, Sequence[int]], logger: logging.Logger) -> list[str]:
    """The base tensors that the file does not bring, if it may lack them."""
    missing: dict[str, list[str]] = {}
    for name in base:
        if name not in tensors:
            missing.setdefault(name.split(".")[0], []).append(name)
    sizes: dict[str, int] = {}
    for name in base:
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + 1
    # A classifier brings a backbone alone.
    allowed = sizes.keys() - {"backbone"} if missing.keys() >= sizes.keys() - {"backbone"} else set(OPTIONAL_PARTS)
    absent = [part for part, names in missing.items() if len(names) == sizes[part] and part in allowed]
    anew, broken, optional = [], [], []
    for part, names in missing.items():
        if part not in absent:
            anew += [name for name in names if CLASS_DEPENDENT.search(name)]
            optional += [name for name in names if _OPTIONAL.fullmatch(name)]
            broken += [name for name in names if not CLASS_DEPENDENT.search(name) and not _OPTIONAL.fullmatch(name)]
    if broken:
        raise CheckpointError(
            f"The checkpoint has only a part of the model: missing are {_listing(broken)}. Load a complete checkpoint; "
            "files with tuned tensors alone belong into MODEL.PEFT.DELTA."
        )
    if absent:
        logger.warning("The checkpoint has no %s: it keeps its initialisation.", ", ".join(absent))
    if anew:
        logger.warning("Initialised anew, because the checkpoint has other classes: %s", ", ".join(anew))
    return [name for part in absent for name in missing[part]] + anew + optional


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b)))


def _listing(items: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
