"""One training step against the original: predictions, matched pairs, losses and gradients, with its random draws."""
import pytest
import torch

from lowrank_d2.layers.draws import ReplayDraws
from lowrank_d2.modeling.maskdino import weights
from tests.golden.seen import watch

pytestmark = pytest.mark.golden


@pytest.fixture
def matched(monkeypatch):
    """model, case -> the pairs of its next step by the golden names, filled when it runs.

    The original matches every prediction, also those whose losses DEEP_SUPERVISION False then drops. Our model leaves
    these unmatched; where the case has their pairs, they are matched here with the recorded points.
    """

    def record(model, case):
        named, step = {}, {}
        stored = {name.split("/")[1] for name in case.meta["tensors"] if name.startswith("matched/")}
        match = model.criterion.matcher
        model.decoder.register_forward_hook(lambda module, inputs, predictions: step.update(all=predictions))

        def assign(asked, *arguments):
            predictions = matched_predictions(step["all"])
            pairs = match({n: p for n, p in predictions.items() if n in stored or n in asked}, *arguments)
            for name, images in pairs.items():
                for i, pair in enumerate(images):
                    named[f"matched/{name}/image_{i}"] = torch.stack((pair.queries, pair.targets))
            return {name: pairs[name] for name in asked}

        monkeypatch.setattr(model.criterion, "matcher", assign)
        return named

    return record


def matched_predictions(predictions):
    """What the original matches, by the names of the draws."""
    named = {"layer_last": predictions.last} | {f"layer_{i}": aux for i, aux in enumerate(predictions.aux)}
    return named if predictions.interm is None else named | {"interm": predictions.interm}


def test_a_training_step_equals_the_originals(train_case, golden, golden_model, golden_inputs, matched):
    model = golden_model(train_case).train()
    model.draws = ReplayDraws(train_case.draws())
    seen, pairs = watch(model), matched(model, train_case)
    losses = model(golden_inputs(train_case))
    total = sum(losses.values())
    total.backward()

    named_losses = {f"losses/{name}": loss for name, loss in losses.items()} | {"losses/total": total}
    mine = {name: x.detach().numpy() for name, x in (seen | pairs | named_losses).items()}
    stored = train_case.meta["tensors"]
    assert stored.keys() <= mine.keys(), "the golden data has tensors that this test does not compute"
    assert named_losses.keys() == {name for name in stored if name.startswith("losses/")}
    results = [train_case.check(name, mine[name]) for name in stored]
    assert [result for result in results if not result["ok"]] == []

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients = {name: value.numpy() for name, value in weights.to_upstream(gradients).items()}
    gradients.pop("criterion.empty_weight", None)
    assert {golden.canonical(name) for name in gradients} == set(train_case.meta["gradients"])
    assert train_case.check_gradients(gradients) == []
