"""Evaluation and training steps against the originals: every stored tensor, pair, loss and gradient."""
import numpy as np
import pytest
import torch
from lora_detr_cases import batch_of, model_of
from lora_detr_seen import Watch

from lora_detr.weights import from_upstream
from lowrank_d2.layers.draws import ReplayDraws

pytestmark = pytest.mark.golden
PAIRS = ("matched", "assigned", "merged")


def test_evaluation_equals_the_originals(eval_case):
    model = model_of(eval_case)
    batch = batch_of(eval_case)
    watch = Watch(model)
    with torch.no_grad():
        results = model(batch)
        plain = {name: x for name, x in watch.seen.items() if name.startswith("main/")}
        model.decode(model.extract(model.preprocess(batch)), with_branches=True)
    seen = watch.seen
    assert all(torch.equal(seen[name], x) for name, x in plain.items())  # whether the branches are computed or not
    for i, result in enumerate(results):
        instances = result["instances"]
        seen |= {
            f"detections/image_{i}/scores": instances.scores,
            f"detections/image_{i}/labels": instances.pred_classes,
            f"detections/image_{i}/boxes": instances.pred_boxes.tensor,
        }
    assert failures(eval_case, seen) == []


def test_a_training_step_equals_the_originals(train_case):
    model = model_of(train_case).train()
    model.draws = ReplayDraws(train_case.draws())
    watch = Watch(model)
    losses = model(batch_of(train_case))
    total = sum(losses.values())
    total.backward()

    seen = watch.seen
    seen |= {f"losses/{name}": loss for name, loss in losses.items()} | {"losses/total": total}
    assert failures(train_case, seen) == []
    stored = {name for name in train_case.meta["tensors"] if name.startswith("losses/")}
    assert not [name for name in seen if name.startswith("losses/") and name not in stored and seen[name] != 0]
    gradients = {name: gradient_of(name, model) for name in train_case.meta["gradients"]}
    assert train_case.check_gradients({name: g for name, g in gradients.items() if g is not None}) == []
    listed = {ours for name in gradients for ours in from_upstream({name: torch.zeros(3)})}
    others = {name: p.grad for name, p in model.named_parameters() if name not in listed and p.grad is not None}
    assert not [name for name, gradient in others.items() if gradient.any()]


def failures(case, seen):
    """What differs; a stored name that was not computed fails."""
    wrong = []
    for name in case.meta["tensors"]:
        assert name in seen, f"the golden data has {name}, unknown to this test"
        mine = seen[name].detach().numpy()
        if name.split("/")[0] in PAIRS:
            if set(map(tuple, mine.T.tolist())) != set(map(tuple, case.arrays[name].T.tolist())):
                wrong.append(name)
            continue
        result = case.check(name, mine)
        wrong += [] if result["ok"] else [result]
    return wrong


def gradient_of(name, model):
    """The gradient of a parameter by the original's name, packed as there, or of the backbone's stand-in."""
    if name.startswith("features/"):
        return model.backbone.features[f"res{name[-1]}"].grad.numpy()
    parameters = dict(model.named_parameters())
    parts = [parameters[ours].grad for ours in from_upstream({name: torch.zeros(3)})]
    return None if any(part is None for part in parts) else np.concatenate([part.numpy() for part in parts])
