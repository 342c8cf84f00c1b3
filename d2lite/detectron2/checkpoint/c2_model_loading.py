"""Matching the parameter names of a checkpoint to those of a model, and the names that Caffe2 Detectron used."""
import logging
import os
import re
from collections import defaultdict
from typing import Dict, List

import torch

# (pattern, replacement), applied in this order to a Caffe2 blob's name after "_" has become "."
_BASIC_RULES = [
    (r"^pred\.(b|w)$", r"linear.\1"),
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"\bbn\.(s|gamma)$", "norm.weight"),
    (r"\bbn\.(bias|beta)$", "norm.bias"),
    (r"\bbn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"\bbn\.(riv|running\.var)$", "norm.running_var"),
    (r"\bgn\.s$", "norm.weight"),
    (r"\bgn\.bias$", "norm.bias"),
    (r"^(res\.)?conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
]

_DETECTION_RULES = [
    # proposals; with an FPN the head was stored once, as that of level 2
    (r"^conv\.rpn(\.fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"^rpn\.bbox\.pred(\.fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"^rpn\.cls\.logits(\.fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    # boxes
    (r"^bbox\.pred", "bbox_pred"), (r"^cls\.score", "cls_score"),
    (r"^fc6\.", "box_head.fc1."), (r"^fc7\.", "box_head.fc2."), (r"^head\.conv", "box_head.conv"),
    # FPN; the block's number within its stage differs between depths
    (r"^fpn\.inner\.res(\d)\.\d+\.sum(\.lateral)?", r"fpn_lateral\1"),
    (r"^fpn\.res(\d)\.\d+\.sum", r"fpn_output\1"),
    # masks and keypoints
    (r"^\.(\[mask\]|mask)\.fcn", "mask_head.mask_fcn"), (r"^mask\.fcn\.logits", "mask_head.predictor"),
    (r"^conv5\.mask", "mask_head.deconv"), (r"^conv\.fcn", "roi_heads.keypoint_head.conv_fcn"),
    (r"^kps\.score\.lowres", "roi_heads.keypoint_head.score_lowres"),
    (r"^kps\.score\.", "roi_heads.keypoint_head.score."),
]


def _apply(rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_basic_c2_names(original_keys: List[str]) -> List[str]:
    """Caffe2 blob names -> the names of a ResNet here; what is unknown only gets dots."""
    return [_apply(_BASIC_RULES, key.replace("_", ".")) for key in original_keys]


def convert_c2_detectron_names(weights: Dict[str, torch.Tensor]):
    """({new name: tensor}, {new name: original name}); the background class, first in Caffe2, is dropped or moved."""
    logging.getLogger(__name__).info("Renaming %d Caffe2 weights", len(weights))
    converted, original_names = {}, {}
    for original, basic in sorted(zip(weights, convert_basic_c2_names(list(weights)))):
        name, value = _apply(_DETECTION_RULES, basic), weights[original]
        if name.startswith("bbox_pred."):
            value = value[4:]
        elif name.startswith("cls_score."):
            value = torch.cat([value[1:], value[:1]])
        elif name.startswith("mask_head.predictor."):
            value = value[1:]
        converted[name], original_names[name] = value, original
    return converted, original_names


def align_and_update_state_dicts(model_state_dict, ckpt_state_dict, c2_conversion=True):
    """The checkpoint's tensors, matched ones under the model's names, then the others under their own.

    Each key of the model takes the longest key of the checkpoint that equals it or is its end after a dot, provided
    that the shapes agree. ValueError if one key of the checkpoint is the best for two keys of the model.
    """
    logger = logging.getLogger(__name__)
    original_names = {key: key for key in ckpt_state_dict}
    if c2_conversion:
        ckpt_state_dict, original_names = convert_c2_detectron_names(ckpt_state_dict)
    matched = {}  # checkpoint key -> model key
    for model_key in sorted(model_state_dict):
        key = _longest_matching_suffix(model_key, ckpt_state_dict)
        if key is None:
            continue
        model_shape, shape = tuple(model_state_dict[model_key].shape), tuple(ckpt_state_dict[key].shape)
        if model_shape != shape:
            message = "%s of the checkpoint has shape %s but %s of the model %s: it is not loaded. Is that meant?"
            logger.warning(message, original_names[key], shape, model_key, model_shape)
            continue
        if key in matched:
            raise ValueError(f"{key} of the checkpoint ambiguously fits two keys, {matched[key]} and {model_key}")
        matched[key] = model_key
    _log_matches(logger, matched, original_names)
    result = {model_key: ckpt_state_dict[key] for key, model_key in matched.items()}
    result.update((key, value) for key, value in ckpt_state_dict.items() if key not in matched)
    return result


def _longest_matching_suffix(model_key, keys):
    parts = model_key.split(".")
    suffixes = (".".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in keys), None)


def _log_matches(logger, matched, original_names):
    """One line for each module that received something: `backbone.res2.0.conv1.{weight, bias} <- res2_0_branch2a_`."""
    if not matched:
        logger.warning("No name in the checkpoint matches one of the model: nothing is loaded")
        return
    modules = defaultdict(list)
    for key, model_key in matched.items():
        module, _, parameter = model_key.rpartition(".")
        modules[module].append((parameter, original_names[key]))
    lines = []
    for module, group in modules.items():
        parameters, originals = zip(*group)
        lines.append(f"  {module}.{{{', '.join(parameters)}}} <- {_longest_common_prefix_str(originals)}")
    logger.info("%d weights of the checkpoint matched by name:\n%s", len(matched), "\n".join(lines))


def _longest_common_prefix_str(names: List[str]) -> str:
    """The characters that all names begin with: ["classA", "classB", "clab"] -> "cla"."""
    return os.path.commonprefix(names)
