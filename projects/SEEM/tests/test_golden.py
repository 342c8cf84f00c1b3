"""SEEM, its adapters and LoRA against the reference data: every stored tensor, loss and gradient."""
import numpy as np
import pytest
import torch

from lowrank_d2.layers.draws import ReplayDraws
from lowrank_d2.modeling import matcher
from projects.SEEM.tests.golden_case import SHARED, SMALL, cases, inputs_of, model_of, rules
from seem.text_encoder import normalised
from seem.weights import to_upstream
from tests.golden.seen import result_maps

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("folder", cases("eval"))
def test_evaluation_equals_the_originals(folder, monkeypatch):
    case = rules().load(folder)
    model = model_of(case, monkeypatch).eval()
    seen = watch(model)
    with torch.no_grad():
        results = model(inputs_of(case))
    mine = {name: x.numpy() for name, x in (seen | texts(model, case) | result_maps(results)).items()}

    failures = []
    for name in case.meta["tensors"]:
        family, *rest = name.split("/")
        if family == "instances":
            assert rest[1] in ("scores", "classes", "masks"), f"the golden data has {name}, unknown to this test"
            if rest[1] == "scores":
                failures += compare_instances(case, int(rest[0]), results[int(rest[0])]["instances"])
            continue
        assert name in mine, f"the golden data has {name}, unknown to this test"
        if family == "panoptic" and rest[1] == "segments":
            failures += compare_segments(case, name, mine[name])
            continue
        failures += [result for result in [case.check(name, mine[name])] if not result["ok"]]
    assert failures == []


@pytest.mark.parametrize("folder", cases("train"))
def test_a_training_step_equals_the_originals(folder, monkeypatch):
    case = rules().load(folder)
    model = model_of(case, monkeypatch).train()
    model.draws = ReplayDraws(case.draws())
    seen, words = watch(model), texts(model, case)
    pairs = watch_matcher(model, case, monkeypatch)
    losses = model(inputs_of(case))
    total = sum(losses.values())
    total.backward()

    named = {f"losses/{name}": loss for name, loss in losses.items()} | {"losses/total": total}
    mine = {name: x.detach().numpy() for name, x in (seen | words | pairs | named).items()}
    stored = case.meta["tensors"]
    assert sorted(stored.keys() - mine.keys()) == [], "the golden data has tensors that this test does not compute"
    assert named.keys() == {name for name in stored if name.startswith("losses/")}
    assert [result for result in (case.check(name, mine[name]) for name in stored) if not result["ok"]] == []

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients = {name: value.numpy() for name, value in to_upstream(gradients).items()}
    assert gradients.keys() == set(case.meta["gradients"])
    assert case.check_gradients(gradients) == []


def test_the_small_cases_have_the_rules_of_the_larger_data():
    if not (SHARED / "seem" / "rules.py").is_file():
        pytest.skip(f"the larger data is not at {SHARED}")
    assert (SMALL / "rules.py").read_bytes() == (SHARED / "seem" / "rules.py").read_bytes()


def watch(model) -> dict:
    """A dict that every forward pass fills with what it computes, by the golden names."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output.detach())

    def pixel_decoder(module, inputs, features):
        seen["pixel_decoder/mask_features"] = features.mask_features.detach()
        seen.update({f"pixel_decoder/memory_{i}": x.detach() for i, x in enumerate(features.memory)})

    def decoder(module, inputs, predictions):
        sets = {"outputs": predictions.last} | {f"outputs/aux_{i}": p for i, p in enumerate(predictions.aux)}
        for name, prediction in sets.items():
            seen[f"{name}/pred_logits"] = prediction.logits.detach()
            seen[f"{name}/pred_masks"] = prediction.mask_logits(predictions.mask_features).detach()

    def encoder(module, inputs, features):
        coarsest = features["res5"].shape[-2:]
        seen.update({f"backbone/{name}": x.detach() for name, x in features.items()})
        model.pixel_decoder.encoder[-1].register_forward_hook(
            lambda module, inputs, x: seen.__setitem__(
                "pixel_decoder/transformer", x.detach().transpose(1, 2).unflatten(2, coarsest)
            )
        )

    model.backbone.register_forward_hook(encoder)
    model.pixel_decoder.register_forward_hook(pixel_decoder)
    model.decoder.register_forward_hook(decoder)
    for i, layer in enumerate(model.decoder.layers):
        layer.cross_attn.register_forward_hook(keep(f"decoder/layer_{i}/cross"))
        layer.self_attn.register_forward_hook(keep(f"decoder/layer_{i}/self"))
        layer.register_forward_hook(keep(f"decoder/layer_{i}/query"))
    return seen


@torch.no_grad()
def texts(model, case) -> dict:
    """What the text encoder makes of the case's tokens."""
    if case.meta["text"] == "given":
        return {}
    tokens = torch.from_numpy(case.tokens().copy())
    first = tokens[:, 0]
    every = normalised(model.text.encoder.embed_many(tokens.flatten(0, 1))).unflatten(0, tokens.shape[:2])
    mean = every.mean(1)
    return {
        "text/hidden": model.text.encoder(first),
        "text/unnormalized": model.text.encoder.embed(first),
        "text/first_template": every[:, 0],
        "text/mean_of_templates": mean / mean.norm(dim=-1, keepdim=True),
    }


def watch_matcher(model, case, monkeypatch) -> dict:
    """A dict that the next step fills with its matching: costs of the last prediction, pairs of all.

    The original matches every prediction, also those whose losses DEEP_SUPERVISION False drops. Ours leaves these
    unmatched; where the case has their pairs, they are matched here with the recorded points.
    """
    named, step, match, assign = {}, {}, model.criterion.matcher, matcher.assign
    stored = {name.split("/")[1] for name in case.meta["tensors"] if name.startswith("matched/")}
    model.decoder.register_forward_hook(lambda module, inputs, predictions: step.update(all=predictions))

    def keep_costs(names, costs):
        last = names.index("layer_last")
        named.update({f"cost/layer_last/image_{i}": cost[last] for i, cost in enumerate(costs)})
        return assign(names, costs)

    def keep_pairs(asked, *arguments):
        every = {"layer_last": step["all"].last} | {f"layer_{i}": aux for i, aux in enumerate(step["all"].aux)}
        pairs = match({name: p for name, p in every.items() if name in stored or name in asked}, *arguments)
        for name, images in pairs.items():
            named.update({f"matched/{name}/image_{i}": torch.stack((p.queries, p.targets)) for i, p in enumerate(images)})
        return {name: pairs[name] for name in asked}

    monkeypatch.setattr(matcher, "assign", keep_costs)
    monkeypatch.setattr(model.criterion, "matcher", keep_pairs)
    return named


def compare_instances(case, index, instances) -> list:
    """Failures of the instances of an image, compared as sets with the noise of each score."""
    name = f"instances/{index}/"
    boxes = np.zeros((len(instances), 4))  # the original's are all zero, and not stored
    mine = {
        "scores": instances.scores.numpy(),
        "classes": instances.pred_classes.numpy(),
        "masks": instances.pred_masks.numpy(),
        "boxes": boxes,
    }
    gold = {key: case.arrays[name + key] for key in ("scores", "classes")} | {"masks": case.masks(index)}
    gold["boxes"] = np.zeros((len(gold["scores"]), 4))
    pixels = max(3, 10 * case.meta["tensors"][name + "masks"].get("noise_pixels_per_mask", 0))
    pairs, alone, missed = rules().golden.match_instances(mine, gold, mask_pixels=pixels)
    if alone or missed:
        return [f"{name}: {alone} are not in the original's, {missed} of the original's are absent"]
    order = np.empty(len(pairs), int)
    for i, j in pairs:
        order[j] = i
    results = [case.check(name + key, mine[key][order]) for key in ("scores", "classes")]
    return [result for result in results if not result["ok"]]


def compare_segments(case, name, segments) -> list:
    """Failures of a panoptic map, of which 0.1 % of the pixels may differ."""
    gold, mine = case.arrays[name].reshape(-1), segments.reshape(-1)
    if list(segments.shape) != case.meta["tensors"][name]["shape"]:
        return [f"{name}: shape {segments.shape}"]
    if mine.size != gold.size:  # the stored map is a subset
        mine = mine[rules().golden.sample_indices(name, mine.size)]
    different = np.mean(mine != gold)
    return [] if different <= 1e-3 else [f"{name}: {different:.2%} of the pixels differ"]
