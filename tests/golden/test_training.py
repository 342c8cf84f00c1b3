"""One training step against the original: predictions, matched pairs, losses and gradients, with its random draws."""
import pytest
import torch

from lowrank_d2.layers.draws import ReplayDraws
from lowrank_d2.modeling.maskdino import weights

pytestmark = pytest.mark.golden


@pytest.fixture
def watched(monkeypatch):
    """model -> what a step hands to the criterion and gets from the matcher, filled when it runs."""

    def watch(model):
        seen = {}
        criterion, match = model.criterion, model.criterion.matcher

        def compare(predictions, targets, layout, draws):
            seen.update(predictions=predictions, layout=layout)
            return criterion(predictions, targets, layout, draws)

        def assign(*arguments):
            seen["pairs"] = match(*arguments)
            return seen["pairs"]

        monkeypatch.setattr(model, "criterion", compare)
        monkeypatch.setattr(criterion, "matcher", assign)
        if hasattr(model.decoder, "selection"):
            model.decoder.selection.register_forward_hook(lambda module, inputs, out: seen.update(topk=out.indices))
        return seen

    return watch


def named_tensors(seen, losses):
    """Everything the golden data can name of a training step."""
    predictions, layout = seen["predictions"], seen["layout"]
    out = {f"losses/{name}": value for name, value in losses.items()}
    out["losses/total"] = sum(losses.values())
    if "topk" in seen:
        out["select/topk_indices"] = seen["topk"]
    if layout is not None:
        out["dn/groups_and_pad"] = torch.tensor([layout.groups, layout.pad])
    sets = {"outputs/": predictions.last, "interm/": predictions.interm, "outputs/dn_": predictions.dn_last}
    sets |= {f"outputs/aux_{i}/": single for i, single in enumerate(predictions.aux)}
    for prefix, single in sets.items():
        if single is not None:
            out[prefix + "pred_logits"], out[prefix + "pred_boxes"] = single.logits, single.boxes
            out[prefix + "pred_masks"] = single.mask_logits(predictions.mask_features)
    for name, images in seen["pairs"].items():
        for i, pair in enumerate(images):
            out[f"matched/{name}/image_{i}"] = torch.stack((pair.queries, pair.targets))
    return {name: value.detach().numpy() for name, value in out.items()}


def test_a_training_step_equals_the_originals(train_case, golden, golden_model, golden_inputs, watched):
    model = golden_model(train_case).train()
    model.draws = ReplayDraws(train_case.draws())
    seen = watched(model)
    losses = model(golden_inputs(train_case))
    sum(losses.values()).backward()

    mine, stored = named_tensors(seen, losses), train_case.meta["tensors"]
    assert stored.keys() <= mine.keys(), "the golden data has tensors that this test does not compute"
    assert {f"losses/{name}" for name in losses} | {"losses/total"} == {n for n in stored if n.startswith("losses/")}
    results = [train_case.check(name, mine[name]) for name in stored]
    assert [result for result in results if not result["ok"]] == []

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients = {name: value.numpy() for name, value in weights.to_upstream(gradients).items()}
    gradients.pop("criterion.empty_weight", None)
    assert {golden.canonical(name) for name in gradients} == set(train_case.meta["gradients"])
    assert train_case.check_gradients(gradients) == []
