"""Evaluation against the original: every intermediate tensor, prediction and result that the golden data stores."""
import numpy as np
import pytest
import torch

import lowrank_d2.modeling.maskdino  # noqa: F401  registers the model

pytestmark = pytest.mark.golden


def watch(model):
    """What a forward pass computes, under the golden names, filled when it runs."""
    seen = {}

    def backbone(module, inputs, features):
        seen.update({f"backbone/{name}": x for name, x in features.items()})

    def pixel_decoder(module, inputs, features):
        seen["encoder/mask_features"] = features.mask_features
        seen.update({f"encoder/memory_{i}": x for i, x in enumerate(features.memory)})

    def selection(module, inputs, selected):
        seen["select/scores"] = selected.scores
        seen["select/topk_indices"] = selected.indices
        seen["select/boxes_unsigmoid"] = selected.boxes_unsigmoid

    def layer(index):
        def hook(module, inputs, x):
            query, _, reference = inputs[:3]
            if index == 0:
                seen["decoder/initial_query"], seen["decoder/initial_reference"] = query, reference
            seen[f"decoder/layer_{index}/query"] = model.decoder.heads.norm(x)
            seen[f"decoder/layer_{index}/reference"] = model.decoder.heads.refine(x, reference)

        return hook

    def decoder(module, inputs, predictions):
        sets = {"outputs/": predictions.last, "interm/": predictions.interm}
        sets |= {f"outputs/aux_{i}/": prediction for i, prediction in enumerate(predictions.aux)}
        for prefix, prediction in sets.items():
            if prediction is not None:
                seen[prefix + "pred_logits"], seen[prefix + "pred_boxes"] = prediction.logits, prediction.boxes
                seen[prefix + "pred_masks"] = prediction.mask_logits(predictions.mask_features)

    model.backbone.register_forward_hook(backbone)
    model.pixel_decoder.register_forward_hook(pixel_decoder)
    model.decoder.register_forward_hook(decoder)
    if hasattr(model.decoder, "selection"):
        model.decoder.selection.register_forward_hook(selection)
    for i, module in enumerate(model.decoder.layers):
        module.register_forward_hook(layer(i))
    return seen


def compare_instances(case, golden, index, instances):
    """Failures of the instances of image `index`, compared as sets with the noise of each score."""
    name = f"instances/{index}/"
    mine = {
        "scores": instances.scores.numpy(),
        "classes": instances.pred_classes.numpy(),
        "boxes": instances.pred_boxes.tensor.numpy(),
        "masks": instances.pred_masks.numpy(),
    }
    gold = {key: case.arrays[name + key] for key in ("scores", "classes", "boxes")} | {"masks": case.masks(index)}
    pixels = max(3, 10 * case.meta["tensors"][name + "masks"].get("noise_pixels_per_mask", 0))
    pairs, alone, missed = golden.match_instances(mine, gold, mask_pixels=pixels)
    if alone or missed:
        return [f"{name}: {alone} are not in the original's, {missed} of the original's are absent"]
    order = np.empty(len(pairs), int)
    for i, j in pairs:
        order[j] = i
    results = [case.check(name + key, mine[key][order]) for key in ("scores", "classes", "boxes")]
    return [result for result in results if not result["ok"]]


def test_evaluation_equals_the_originals(eval_case, golden, golden_model, golden_inputs):
    model = golden_model(eval_case).eval()
    seen = watch(model)
    with torch.no_grad():
        results = model(golden_inputs(eval_case))

    failures = []
    for name in eval_case.meta["tensors"]:
        family, _, rest = name.partition("/")
        if family == "instances":
            index, _, key = rest.partition("/")
            assert key in ("scores", "classes", "boxes", "masks"), f"the golden data has {name}, unknown to this test"
            if key == "scores":
                failures += compare_instances(eval_case, golden, int(index), results[int(index)]["instances"])
            continue
        if family in ("sem_seg", "panoptic"):
            failures += compare_map(eval_case, name, family, results[int(rest.partition("/")[0])])
            continue
        assert name in seen, f"the golden data has {name}, unknown to this test"
        result = eval_case.check(name, seen[name].numpy())
        failures += [] if result["ok"] else [result]
    assert failures == []


def compare_map(case, name, family, result):
    """Failures of a semantic map (noise) or a panoptic one (at most 0.1 % of the pixels may differ)."""
    if family == "sem_seg":
        outcome = case.check(name, result["sem_seg"].numpy())
        return [] if outcome["ok"] else [outcome]
    different = np.mean(result["panoptic_seg"][0].numpy() != case.arrays[name])
    return [] if different <= 1e-3 else [f"{name}: {different:.2%} of the pixels differ"]
