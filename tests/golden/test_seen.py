"""How queries are brought into the original's order."""
from types import SimpleNamespace

import numpy as np
import pytest

from tests.golden.seen import in_the_originals_order

SCORES = np.float32([[0.1, 3.0, 2.0, 2.0 + 1e-6, 0.5, 1.0]])


def case(tokens, noise=1e-6):
    arrays = {"select/topk_indices": np.array([tokens])}
    return SimpleNamespace(arrays=arrays, meta={"tensors": {"select/scores": {"noise": noise}}})


def seen():
    tokens = np.array([[1, 3, 2, 5]])
    return {"select/scores": SCORES, "select/topk_indices": tokens, "outputs/pred_logits": tokens[..., None] * 10.0}


def test_queries_that_rounding_exchanged_are_compared_by_their_tokens():
    aligned = in_the_originals_order(seen(), case([1, 2, 3, 5]))
    assert aligned["select/topk_indices"].tolist() == [[1, 2, 3, 5]]
    assert aligned["outputs/pred_logits"][0, :, 0].tolist() == [10, 20, 30, 50]
    assert aligned["select/scores"] is SCORES


@pytest.mark.parametrize("tokens, noise", [([1, 2, 3, 5], 1e-8), ([5, 3, 2, 1], 1e-6), ([1, 3, 2, 4], 1e-6)])
def test_nothing_else_is_forgiven(tokens, noise):
    assert in_the_originals_order(seen(), case(tokens, noise))["select/topk_indices"].tolist() == [[1, 3, 2, 5]]


def test_without_a_selection_nothing_is_moved():
    plain = SimpleNamespace(arrays={}, meta={})
    assert in_the_originals_order({"outputs/pred_logits": SCORES}, plain)["outputs/pred_logits"] is SCORES
