"""What a forward pass computes, under the names of the golden data."""
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_d2.modeling.predictions import Predictions


def watch(model: nn.Module) -> dict[str, Tensor]:
    """A dict that every forward pass of `model` fills."""
    seen: dict[str, Tensor] = {}

    def backbone(module: nn.Module, inputs: Any, features: dict[str, Tensor]) -> None:
        seen.update({f"backbone/{name}": x for name, x in features.items()})

    def pixel_decoder(module: nn.Module, inputs: Any, features: Any) -> None:
        seen["encoder/mask_features"] = features.mask_features
        seen.update({f"encoder/memory_{i}": x for i, x in enumerate(features.memory)})

    def selection(module: nn.Module, inputs: Any, selected: Any) -> None:
        seen["select/scores"] = selected.scores
        seen["select/topk_indices"] = selected.indices
        seen["select/boxes_unsigmoid"] = selected.boxes_unsigmoid

    def layer(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, x: Tensor) -> None:
            query, _, reference = inputs[:3]
            if index == 0:
                seen["decoder/initial_query"], seen["decoder/initial_reference"] = query, reference
            seen[f"decoder/layer_{index}/query"] = model.decoder.heads.norm(x)
            seen[f"decoder/layer_{index}/reference"] = model.decoder.heads.refine(x, reference)

        return hook

    def decoder(module: nn.Module, inputs: Any, predictions: Predictions) -> None:
        denoising = inputs[1] if len(inputs) > 1 else None
        if denoising is not None:
            seen["dn/groups_and_pad"] = torch.tensor([denoising.layout.groups, denoising.layout.pad])
        seen.update(named_predictions(predictions))

    model.backbone.register_forward_hook(backbone)
    model.pixel_decoder.register_forward_hook(pixel_decoder)
    model.decoder.register_forward_hook(decoder)
    if hasattr(model.decoder, "selection"):
        model.decoder.selection.register_forward_hook(selection)
    for i, module in enumerate(model.decoder.layers):
        module.register_forward_hook(layer(i))
    return seen


def named_predictions(predictions: Predictions) -> dict[str, Tensor]:
    """Every prediction set: the last has no number, those of the denoising queries begin with `dn_`."""
    sets = {"outputs/": predictions.last, "interm/": predictions.interm, "outputs/dn_": predictions.dn_last}
    sets |= {f"outputs/aux_{i}/": prediction for i, prediction in enumerate(predictions.aux)}
    sets |= {f"outputs/aux_{i}/dn_": prediction for i, prediction in enumerate(predictions.dn_aux)}
    named = {}
    for prefix, prediction in sets.items():
        if prediction is not None:
            named[prefix + "pred_logits"], named[prefix + "pred_boxes"] = prediction.logits, prediction.boxes
            named[prefix + "pred_masks"] = prediction.mask_logits(predictions.mask_features)
    return named


def in_the_originals_order(seen: Mapping[str, np.ndarray], case: Any) -> dict[str, np.ndarray]:
    """The same arrays, with our queries in the order of the original's where rounding alone chose another one.

    In a full-size model neighbouring query scores are nearer than the noise. Everything after the selection treats
    queries as a set, so they are compared by their tokens. Where tokens differ, or scores by more than twice the
    tolerance of 10 x noise, nothing is moved and the comparison fails.
    """
    seen, gold = dict(seen), case.arrays.get("select/topk_indices")
    mine = seen.get("select/topk_indices")
    if gold is None or mine is None or np.array_equal(mine, gold):
        return seen
    falls = -np.diff(np.take_along_axis(seen["select/scores"], gold, axis=1), axis=1)
    tolerance = 20 * case.meta["tensors"]["select/scores"]["noise"]
    if not np.array_equal(np.sort(mine), np.sort(gold)) or falls.min() < -tolerance:
        return seen
    # Where each of the original's tokens stands among ours.
    order = np.take_along_axis(np.argsort(mine), np.argsort(np.argsort(gold)), axis=1)
    for name, x in seen.items():
        if name.startswith(("select/topk", "select/boxes", "interm/", "decoder/", "outputs/")):
            seen[name] = np.stack([image[places] for image, places in zip(x, order)])
    return seen


def result_maps(results: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Semantic and panoptic results of all images under the golden names; a row of `info` is id, isthing, class."""
    named = {}
    for i, result in enumerate(results):
        if "sem_seg" in result:
            named[f"sem_seg/{i}"] = result["sem_seg"]
        if "panoptic_seg" in result:
            segments, info = result["panoptic_seg"]
            rows = [(segment["id"], int(segment["isthing"]), segment["category_id"]) for segment in info]
            named[f"panoptic/{i}/segments"] = segments
            named[f"panoptic/{i}/info"] = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    return named
