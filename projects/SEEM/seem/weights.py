"""Names of the published state dicts and ours, both ways; what a checkpoint must contain to be loaded.

All functions are pure. Where the original packs the projections of q, k and v into one matrix, ours are three layers.
Its `adapter_1` to `adapter_3` are convolutions of the feature pyramid, not adapters.
"""
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lowrank_d2.errors import CheckpointError

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
# (ours, the original's). {n} and {i} are numbers, {x} is weight or bias, {q} one of q, k, v, {name} any name.
_RULES = (
    ("backbone.{name}", "backbone.{name}"),
    ("pixel_decoder.input_proj.{x}", _PIXEL_DECODER + ".input_proj.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.linear{i}.{x}", _ENCODER + ".linear{i}.{x}"),
    ("pixel_decoder.encoder.{n}.ffn.norm.{x}", _ENCODER + ".norm2.{x}"),
    *((f"pixel_decoder.lateral.{i}.{{name}}", f"{_PIXEL_DECODER}.adapter_{i + 1}.{{name}}") for i in range(3)),
    *((f"pixel_decoder.output.{i}.{{name}}", f"{_PIXEL_DECODER}.layer_{i + 1}.{{name}}") for i in range(4)),
    ("pixel_decoder.mask_features.{x}", _PIXEL_DECODER + ".mask_features.{x}"),
    *(
        rule
        for ours, layer, attention, norm in _ATTENTIONS
        for rule in (
            (ours + ".out_proj.{x}", f"{layer}.{attention}.out_proj.{{x}}"),
            (ours + ".norm.{x}", f"{layer}.{norm}.{{x}}"),
            (ours + ".{q}_proj.lora_{name}", f"{layer}.{attention}.{{q}}_lora_{{name}}"),
            (ours + ".adapter.layers.{i}.{name}.{x}", f"{layer}.adapters.{{i}}.adapter_{{name}}.{{x}}"),
        )
    ),
    ("decoder.layers.{n}.ffn.{name}", _PREDICTOR + ".transformer_ffn_layers.{n}.{name}"),
    ("decoder.norm.{x}", _PREDICTOR + ".decoder_norm.{x}"),
    ("decoder.query_feat.{x}", _PREDICTOR + ".query_feat.{x}"),
    ("decoder.query_embed.{x}", _PREDICTOR + ".query_embed.{x}"),
    ("decoder.level_embed.{x}", _PREDICTOR + ".level_embed.{x}"),
    ("decoder.class_embed", _PREDICTOR + ".class_embed"),
    ("decoder.mask_embed.{name}", _PREDICTOR + ".mask_embed.{name}"),
    ("text.logit_scale", _PREDICTOR + ".lang_encoder.logit_scale"),
    ("text.encoder.projection", _PREDICTOR + ".lang_encoder.lang_proj"),
    ("text.encoder.resblocks.{n}.attn.qkv.{x}", _TEXT + ".resblocks.{n}.attn.in_proj_{x}"),
    ("text.encoder.{name}", _TEXT + ".{name}"),
)
_KINDS = {"n": r"\d+", "i": r"\d+", "x": "weight|bias", "q": "[qkv]", "name": r"[\w.]+"}


def _compile(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: f"(?P<{match[1]}>{_KINDS[match[1]]})", re.escape(template)))


_TO_UPSTREAM = tuple((_compile(ours), theirs) for ours, theirs in _RULES)
_FROM_UPSTREAM = tuple((_compile(theirs), ours) for ours, theirs in _RULES)
_OUR_THIRDS = tuple(
    (_compile(ours + ".{q}_proj.{x}"), f"{layer}.{attention}.in_proj_{{x}}") for ours, layer, attention, _ in _ATTENTIONS
)
_PACKED = tuple(
    (_compile(f"{layer}.{attention}.in_proj_{{x}}"), ours + ".{q}_proj.{x}") for ours, layer, attention, _ in _ATTENTIONS
)
# One A for q, k and v, and one B of three times their rows, under the letters that were asked for.
_PACKED_LORA = tuple(
    (_compile(f"{layer}.{attention}.qv_lora_{{name}}"), ours + ".{q}_proj.lora_{name}")
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
        if found := _match(name, _PACKED):
            for letter, rows in zip("qkv", tensor.chunk(3)):
                result[found.format_map({"q": letter})] = rows
        elif found := _match(name, _PACKED_LORA):
            parts = [tensor] * 3 if name.endswith("_A") else tensor.chunk(3)
            result.update((found.format_map({"q": letter}), part) for letter, part in zip("qkv", parts))
        else:
            result[_match(name, _FROM_UPSTREAM) or name] = tensor
    return result


def to_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours, or a part of one, or its gradients, under the original's names.

    Raises:
        CheckpointError: q, k and v of an attention that are not all there, or a tensor without a place there.
    """
    result: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := _match(name, _OUR_THIRDS):
            letter = name.rpartition("_proj.")[0][-1]
            packed.setdefault(found, {})[letter] = tensor
        elif found := _match(name, _TO_UPSTREAM):
            result[found] = tensor
        else:
            raise CheckpointError(
                f"{name} has no counterpart in the original SEEM. Merge low-rank updates first (tools/merge.py)."
            )
    for name, parts in packed.items():
        if len(parts) < 3:
            raise CheckpointError(
                f"{name} needs q, k and v, but only {', '.join(sorted(parts))} is there. Convert a dict with all three."
            )
        result[name] = torch.cat([parts[letter] for letter in "qkv"])
    return result


def check_loaded(
    tensors: dict[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    added: Collection[str],
    logger: logging.Logger,
) -> None:
    """Judges a state dict under our names before it is loaded; takes out what SEEM needs for prompts and grounding.

    Args:
        tensors: changed in place.
        expected: shapes of the model's base tensors.
        added: names of the tensors that methods added to the model.

    Raises:
        CheckpointError: nothing matches, a shape differs, tensors are left over, or a part is incomplete.
    """
    if not expected.keys() & tensors.keys():
        raise CheckpointError(
            f"None of the {len(tensors)} tensors of the checkpoint belongs to SEEM (the first is "
            f"{next(iter(tensors), 'missing')}). Name a SEEM checkpoint, published or of your own, in MODEL.WEIGHTS."
        )
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != tuple(expected[name])]
    if wrong:
        raise CheckpointError(
            "The checkpoint has other shapes than the model: "
            + _listing(f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name])}" for name in wrong)
            + f". {_ADVICE}"
        )
    surplus = [name for name in tensors if name not in expected and name not in added]
    ours = [name for name in surplus if _match(name, _TO_UPSTREAM) or _match(name, _OUR_THIRDS)]
    if ours:
        raise CheckpointError(f"The model has no place for {len(ours)} tensors of the checkpoint: {_listing(ours)}. {_ADVICE}")
    if surplus:
        logger.info("Not used, of SEEM's prompts, grounding and training: %s", ", ".join(sorted(surplus)))
    for name in surplus:
        del tensors[name]
    for part in PARTS:
        names = [name for name in expected if name.startswith(part + ".")]
        missing = [name for name in names if name not in tensors]
        if names and len(missing) == len(names):
            logger.warning("The checkpoint has no %s: it keeps its initialisation.", part.replace("_", " "))
        elif missing:
            raise CheckpointError(
                f"The checkpoint has only a part of the {part.replace('_', ' ')}: missing are {_listing(missing)}. "
                "Load a complete checkpoint; files with tuned tensors alone belong into MODEL.PEFT.DELTA."
            )


_ADVICE = (
    "Take the config of the same model (seem_focall, seem_focalt), and MODEL.PEFT as in the run that wrote the file."
)


def _match(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    """The name by the first rule that fits, with {q} where the rule does not know it; "" if none fits."""
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            return template.format_map({"q": "{q}", **match.groupdict()})
    return ""


def _listing(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
