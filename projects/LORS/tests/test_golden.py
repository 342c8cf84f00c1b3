"""AdaMixer against its public code, and LORS against its formulas: every stored tensor, loss, decision and gradient."""
import re

import numpy as np
import pytest
import torch

from projects.LORS.tests.golden_model import GoldenModel, detections, losses, run

pytestmark = pytest.mark.golden


def assert_all_agree(case, seen):
    stored = case.meta["tensors"]
    assert stored.keys() <= seen.keys(), "the golden data has tensors that this test does not compute"
    arrays = {name: x.detach().numpy() if isinstance(x, torch.Tensor) else x for name, x in seen.items()}
    results = [case.check(name, arrays[name]) for name in stored]
    assert [result for result in results if not result["ok"]] == []
    for name in stored:
        if "/matched/" in name or name.endswith("/labels"):
            assert np.array_equal(arrays[name], case.arrays[name]), name


def assert_gradients_agree(case, model, leaves):
    gradients = model.upstream_gradients() | {name: x.grad.numpy() for name, x in leaves.items()}
    assert gradients.keys() == set(case.meta["gradients"])
    assert case.check_gradients(gradients) == []
    return gradients


def test_adamixer_equals_its_authors_code(adamixer_case):
    case = adamixer_case
    model = GoldenModel(case)
    seen, leaves, outputs = run(model, case)
    seen |= losses(case, outputs) | detections(case, outputs)
    named = {name for name in seen if name.startswith("losses/")}
    assert named == {name for name in case.meta["tensors"] if name.startswith("losses/")}
    assert_all_agree(case, seen)
    if case.meta.get("gradients"):  # an infinite loss has none
        seen["losses/total"].backward()
        assert_gradients_agree(case, model, leaves)


def weighted_outputs(case, rules, outputs):
    """The scalar that is differentiated in the LORS cases."""
    total = 0
    for stage, output in enumerate(outputs):
        for_logits, for_boxes = (torch.from_numpy(x.copy()) for x in rules.loss_weights(case.meta, stage))
        total = total + (output.logits * for_logits).sum() + (output.boxes * for_boxes).sum()
    return total


def test_lors_equals_the_papers_formulas(lors_case, rules):
    case = lors_case
    seen, _, outputs = run(GoldenModel(case), case)
    assert_all_agree(case, seen | {"losses/total": weighted_outputs(case, rules, outputs)})


def test_the_gradients_of_lors_are_those_of_the_formulas(lors_case, rules):
    # In float64, as the reference was computed: a sample that rounding moves over the border of a cell has another
    # gradient, and changing every weight of six stages by one unit in the last place of float32 meets some such.
    case = lors_case
    model = GoldenModel(case).double()
    seen, leaves, outputs = run(model, case)
    total = weighted_outputs(case, rules, outputs)
    assert_all_agree(case, seen | {"losses/total": total})
    total.backward()
    gradients = assert_gradients_agree(case, model, leaves)
    for pattern, largest in case.meta.get("largest_gradient", {}).items():
        found = max(np.abs(g).max() for name, g in gradients.items() if re.search(pattern, name))
        assert found == pytest.approx(largest, rel=1e-3, abs=0), pattern
