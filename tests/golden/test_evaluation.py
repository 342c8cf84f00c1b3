"""Evaluation against the original: every intermediate tensor, prediction and result that the golden data stores."""
import numpy as np
import pytest
import torch

import lowrank_d2.modeling.maskdino  # noqa: F401  registers the model
from tests.golden.seen import in_the_originals_order, result_maps, watch

pytestmark = pytest.mark.golden

INSTANCE_FIELDS = ("scores", "classes", "boxes", "masks")


def test_evaluation_equals_the_originals(eval_case, golden, golden_model, golden_inputs):
    model = golden_model(eval_case).eval()
    seen = watch(model)
    with torch.no_grad():
        results = model(golden_inputs(eval_case))
    seen = {name: x.detach().numpy() for name, x in (seen | result_maps(results)).items()}
    seen = in_the_originals_order(seen, eval_case)

    failures = []
    for name in eval_case.meta["tensors"]:
        family, *rest = name.split("/")
        if family == "instances":
            assert rest[1] in INSTANCE_FIELDS, f"the golden data has {name}, unknown to this test"
            if rest[1] == "scores":
                failures += compare_instances(eval_case, golden, int(rest[0]), results[int(rest[0])]["instances"])
            continue
        assert name in seen, f"the golden data has {name}, unknown to this test"
        if family == "panoptic" and rest[1] == "segments":
            failures += compare_segments(eval_case, golden, name, seen[name])
            continue
        result = eval_case.check(name, seen[name])
        failures += [] if result["ok"] else [result]
    assert failures == []


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


def compare_segments(case, golden, name, segments):
    """Failures of a panoptic map, of which 0.1 % of the pixels may differ."""
    if list(segments.shape) != case.meta["tensors"][name]["shape"]:
        return [f"{name}: shape {segments.shape}"]
    gold = case.arrays[name].reshape(-1)
    mine = segments.reshape(-1)
    if mine.size != gold.size:  # the stored map is a subset
        mine = mine[golden.sample_indices(name, mine.size)]
    different = np.mean(mine != gold)
    return [] if different <= 1e-3 else [f"{name}: {different:.2%} of the pixels differ"]
