"""Checkpoints of the originals: their names, and what a file must contain to be loaded.

Deformable DETR, MS-DETR and LoRA-DETR share one set of names, Relation-DETR has another; both are understood by every
model. All functions are pure but for messages: dict of tensors in, dict of tensors out.
"""
import logging
import re
from typing import Mapping

from torch import Tensor, nn

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.branch_weights import settle_branches
from lowrank_d2.modeling.checkpoint_names import (
    OPTIONAL, RESNET, Shapes, check_any_match, check_complete, drop_other_shapes, listing, missing_by_part, one_way,
    renamed, same_values, warn_initialised
)

CLASS_DEPENDENT = re.compile(r"\.(class_embed|class_head)\.(\d+\.)?(weight|bias)$|\.label_embedding\.weight$")
OPTIONAL_PARTS = ("backbone", "hybrid", "denoising")  # may be absent as a whole

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
_SWIN = re.compile(r"(?:patch_embed|layers\.\d+|norm[0-3])\..+")  # a classifier's file
# torchvision's Swin, which is Relation-DETR's: stages and the mergings between them are counted together.
_TORCHVISION_SWIN = re.compile(r"(?:backbone\.)?(?:0\.)?(features\..+)")
_SWIN_RULES = one_way((
    ("features.0.0.{module}", "patch_embed.proj.{module}"),
    ("features.0.2.{module}", "patch_embed.norm.{module}"),
    *((f"features.{2 * n + 2}.{{module}}", f"layers.{n}.downsample.{{module}}") for n in range(3)),
    *(
        (f"features.{2 * n + 1}.{{i}}.{theirs}{{module}}", f"layers.{n}.blocks.{{i}}.{ours}{{module}}")
        for n in range(4)
        for theirs, ours in (("mlp.0.", "mlp.fc1."), ("mlp.3.", "mlp.fc2."), ("", ""))
    ),
))
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
        if ours in result and not same_values(result[ours], tensor):
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
    for whole, rules in ((_RESNET, RESNET), (_TORCHVISION_SWIN, _SWIN_RULES)):
        if (match := whole.fullmatch(name)) and (ours := renamed(match[1], rules)):
            return f"backbone.{ours}"
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
    check_any_match(
        tensors, base, type(model).__name__, "Name a checkpoint of this model, or of its backbone, in MODEL.WEIGHTS."
    )
    for name in [name for name in tensors if name.endswith(".num_batches_tracked") and name not in base]:
        del tensors[name]  # frozen norms do not count
    settle_branches(tensors, model, logger)
    fatal = drop_other_shapes(tensors, base, CLASS_DEPENDENT.search)
    if fatal:
        raise CheckpointError(
            f"The checkpoint has other shapes than the model: {listing(map(' '.join, fatal.items()))}. The "
            "configuration describes another model: compare the backbone, HIDDEN_DIM, DIM_FEEDFORWARD, NUM_QUERIES and "
            "the numbers of layers."
        )
    return _missing(tensors, base, logger)


def _missing(tensors: Mapping[str, Tensor], base: Shapes, logger: logging.Logger) -> list[str]:
    """The base tensors that the file does not bring, if it may lack them."""
    parts = dict.fromkeys(name.split(".")[0] for name in base)
    found = list(missing_by_part(tensors, base, parts))
    # A classifier brings a backbone alone.
    bare = all(missing for part, missing, _ in found if part != "backbone")
    allowed = parts.keys() - {"backbone"} if bare else OPTIONAL_PARTS
    absent = {part: missing for part, missing, wholly in found if wholly and part in allowed}
    rest = [name for part, missing, _ in found if part not in absent for name in missing]
    anew = [name for name in rest if CLASS_DEPENDENT.search(name)]
    optional = [name for name in rest if OPTIONAL.fullmatch(name)]
    check_complete("model", [name for name in rest if name not in {*anew, *optional}])
    warn_initialised(logger, ", ".join(absent), anew)
    return [name for missing in absent.values() for name in missing] + anew + optional
