"""Names of the published state dicts and ours, both ways; what a checkpoint must contain to be loaded.

All functions are pure. Where the original packs the projections of q, k and v into one matrix, ours are three layers.
Its `adapter_1` to `adapter_3` are convolutions of the feature pyramid, not adapters.
"""
import logging
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.checkpoint_names import (
    Shapes, both_ways, check_any_match, check_complete, drop_other_shapes, joined, listing, missing_by_part, one_way,
    renamed, warn_initialised
)

PARTS = ("backbone", "pixel_decoder", "decoder", "text")

_PIXEL_DECODER, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
_ENCODER = _PIXEL_DECODER + ".transformer.encoder.layers.{n}"
_TEXT = _PREDICTOR + ".lang_encoder.lang_encoder"
# Our attention block, the original's layer around it, its attention, its norm.
_ATTENTIONS = (
    ("pixel_decoder.encoder.{n}.self_attn", _ENCODER, "self_attn", "norm1"),
    ("decoder.layers.{n}.self_attn", _PREDICTOR + ".transformer_self_attention_layers.{n}", "self_attn", "norm"),
    ("decoder.layers.{n}.cross_attn", _PREDICTOR + ".transformer_cross_attention_layers.{n}", "multihead_attn", "norm"),
)
# (ours, the original's), as lowrank_d2.modeling.checkpoint_names explains.
_RULES = (
    ("backbone.{module}", "backbone.{module}"),
    ("pixel_decoder.input_proj.{x}", _PIXEL_DECODER + ".input_proj.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.linear{i}.{x}", _ENCODER + ".linear{i}.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.norm.{x}", _ENCODER + ".norm2.{x}"),
    *((f"pixel_decoder.lateral.{i}.{{module}}", f"{_PIXEL_DECODER}.adapter_{i + 1}.{{module}}") for i in range(3)),
    *((f"pixel_decoder.output.{i}.{{module}}", f"{_PIXEL_DECODER}.layer_{i + 1}.{{module}}") for i in range(4)),
    ("pixel_decoder.mask_features.{x}", _PIXEL_DECODER + ".mask_features.{x}"),
    *(
        rule
        for ours, layer, attention, norm in _ATTENTIONS
        for rule in (
            (ours + ".out_proj.{x}", f"{layer}.{attention}.out_proj.{{x}}"),
            (ours + ".norm.{x}", f"{layer}.{norm}.{{x}}"),
            (ours + ".{q}_proj.lora_{module}", f"{layer}.{attention}.{{q}}_lora_{{module}}"),
            (ours + ".adapter.layers.{i}.{module}.{x}", f"{layer}.adapters.{{i}}.adapter_{{module}}.{{x}}"),
        )
    ),
    ("decoder.layers.{n}.ffn.{module}", _PREDICTOR + ".transformer_ffn_layers.{n}.{module}"),
    ("decoder.norm.{x}", _PREDICTOR + ".decoder_norm.{x}"),
    ("decoder.query_feat.{x}", _PREDICTOR + ".query_feat.{x}"),
    ("decoder.query_embed.{x}", _PREDICTOR + ".query_embed.{x}"),
    ("decoder.level_embed.{x}", _PREDICTOR + ".level_embed.{x}"),
    ("decoder.class_embed", _PREDICTOR + ".class_embed"),
    ("decoder.mask_embed.{module}", _PREDICTOR + ".mask_embed.{module}"),
    ("text.logit_scale", _PREDICTOR + ".lang_encoder.logit_scale"),
    ("text.encoder.projection", _PREDICTOR + ".lang_encoder.lang_proj"),
    ("text.encoder.resblocks.{n}.attn.qkv.{x}", _TEXT + ".resblocks.{n}.attn.in_proj_{x}"),
    ("text.encoder.{module}", _TEXT + ".{module}"),
)
_TO_UPSTREAM, _FROM_UPSTREAM = both_ways(_RULES)
_OUR_THIRDS, _PACKED = both_ways([
    (ours + ".{q}_proj.{x}", f"{layer}.{attention}.in_proj_{{x}}") for ours, layer, attention, _ in _ATTENTIONS
])
# One A for q, k and v, and one B of three times their rows, under the letters that were asked for.
_PACKED_LORA = one_way(
    (f"{layer}.{attention}.qv_lora_{{module}}", ours + ".{q}_proj.lora_{module}")
    for ours, layer, attention, _ in _ATTENTIONS
)


def is_upstream(names: Iterable[str]) -> bool:
    """Whether state-dict names are the original's."""
    return any(name.startswith("sem_seg_head.") for name in names)


def from_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original, or a part of one, or its gradients, under our names; names of nobody's stay.

    LoRA as the paper's authors stored it, one pair of matrices for q, k and v together, becomes a pair for each with
    the same A: the same function, for LoRA on all three projections.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := renamed(name, _PACKED):
            for letter, rows in zip("qkv", tensor.chunk(3)):
                result[found.format_map({"q": letter})] = rows
        elif found := renamed(name, _PACKED_LORA):
            parts = [tensor] * 3 if name.endswith("_A") else tensor.chunk(3)
            result.update((found.format_map({"q": letter}), part) for letter, part in zip("qkv", parts))
        else:
            result[renamed(name, _FROM_UPSTREAM) or name] = tensor
    return result


def to_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours, or a part of one, or its gradients, under the original's names.

    Raises:
        CheckpointError: q, k and v of an attention that are not all there, or a tensor without a place there.
    """
    result: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := renamed(name, _OUR_THIRDS):
            letter = name.rpartition("_proj.")[0][-1]
            packed.setdefault(found, {})[letter] = tensor
        elif found := renamed(name, _TO_UPSTREAM):
            result[found] = tensor
        else:
            raise CheckpointError(
                f"{name} has no counterpart in the original SEEM. Merge low-rank updates first (tools/merge.py)."
            )
    return result | joined(packed, "qkv", lambda name, given: (
        f"{name} needs q, k and v, but only {', '.join(sorted(given))} is there. Convert a dict with all three."
    ))


def check_loaded(
    tensors: dict[str, Tensor], expected: Shapes, added: Collection[str], logger: logging.Logger
) -> None:
    """Judges a state dict under our names before it is loaded; takes out what SEEM needs for prompts and grounding.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.
        added: names of the tensors that methods added to the model.

    Raises:
        CheckpointError: nothing matches, a shape differs, tensors are left over, or a part is incomplete.
    """
    check_any_match(tensors, expected, "SEEM", "Name a SEEM checkpoint, published or of your own, in MODEL.WEIGHTS.")
    fatal = drop_other_shapes(tensors, expected, may_differ=lambda name: False)
    if fatal:
        raise CheckpointError(
            f"The checkpoint has other shapes than the model: {listing(map(' '.join, fatal.items()))}. {_ADVICE}"
        )
    surplus = [name for name in tensors if name not in expected and name not in added]
    ours = [name for name in surplus if renamed(name, _TO_UPSTREAM) or renamed(name, _OUR_THIRDS)]
    if ours:
        raise CheckpointError(
            f"The model has no place for {len(ours)} tensors of the checkpoint: {listing(ours)}. {_ADVICE}"
        )
    if surplus:
        logger.info("Not used, of SEEM's prompts, grounding and training: %s", ", ".join(sorted(surplus)))
    for name in surplus:
        del tensors[name]
    for part, missing, wholly in missing_by_part(tensors, expected, PARTS):
        part = part.replace("_", " ")
        if wholly:
            warn_initialised(logger, part)
        else:
            check_complete(part, missing)


_ADVICE = (
    "Take the config of the same model (seem_focall, seem_focalt), and MODEL.PEFT as in the run that wrote the file."
)
