"""One-to-many assignment: worked examples, both rules, caps, merging; a plain loop as the second opinion."""
import pytest
import torch

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, iou
from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws
from lowrank_d2.modeling.matcher import Pairs
from lowrank_d2.modeling.one_to_many import (
    Assignment, OneToManyAssigner, PaddedTargets, assignment_of, match_scores, merged,
)
from lowrank_d2.modeling.predictions import Target

NONE = torch.zeros(0, dtype=torch.int64)
NOBODY = Assignment(NONE, NONE, NONE, NONE, NONE.bool())
WORKED = [
    [0.90, 0.85, 0.45, 0.60, 0.10, 0.05, 0.20, 0.00],
    [0.10, 0.80, 0.55, 0.65, 0.00, 0.05, 0.15, 0.00],
    [0.05, 0.02, 0.01, 0.03, 0.30, 0.25, 0.00, 0.10],
]


def assigner(k, rule="released", cap=1.0, tau=0.4):
    k = [k] if isinstance(k, int) else k
    return OneToManyAssigner(k=k, tau=[tau] * len(k), alpha=[0.3] * len(k), cap=cap, rule=rule)


def pairs(paired):
    """(G, Q) bool -> {(query, object)}."""
    return {(int(q), int(g)) for g, q in paired.nonzero()}


def assign(scores, k, keep=None, **options):
    scores = torch.tensor(scores)
    keep = torch.zeros(scores.shape[-1]) if keep is None else torch.tensor(keep)
    paired = assigner(k, **options).assign(scores[None], torch.ones(len(scores), dtype=torch.bool), keep[None])
    return pairs(paired[0])


def test_the_worked_example():
    assert assign(WORKED, 2) == {(4, 2), (3, 1), (1, 1), (1, 0), (0, 0)}


def test_an_object_whose_best_query_prefers_another_stays_without():
    assert assign([[0.9, 0.2, 0.1, 0.1], [0.8, 0.3, 0.2, 0.1]], 2) == {(0, 0)}


def test_the_papers_rule_takes_what_exceeds_tau():
    assert assign(WORKED, 2, rule="paper") == {(0, 0), (1, 0), (1, 1), (3, 1)}
    assert assign([[0.4, 0.5]], 2, rule="paper") == {(1, 0)}
    assert assign([[0.5, 0.4]], 6, rule="paper", tau=0.3) == {(0, 0), (1, 0)}


def test_at_tau_a_query_is_positive_with_the_released_rule():
    assert assign([[0.4, 0.5, 0.1, 0.1]], 3) == {(0, 0), (1, 0)}


def test_beyond_the_cap_the_smallest_numbers_stay():
    scores = [[0.9, 0.8, 0.7, 0.6]]
    assert assign(scores, 4, keep=[0.1, 0.4, 0.2, 0.3], cap=0.5) == {(0, 0), (1, 0)}  # two stay: its two best queries
    assert assign(scores + [[0.1, 0.1, 0.75, 0.1]], 4, keep=[0.9, 0.8, 0.1, 0.7], cap=0.25) == {(2, 1)}


def test_more_queries_of_an_object_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="k is 5, but there are only 4 queries"):
        assign([[0.9, 0.8, 0.7, 0.6]], 5)


def test_scores_mix_probability_and_overlap():
    torch.manual_seed(0)
    logits, boxes = torch.randn(4, 2, 5, 3), 0.2 + 0.5 * torch.rand(4, 2, 5, 4)
    targets = [Target(torch.tensor([2]), torch.tensor([[0.4, 0.5, 0.3, 0.2]])), Target(NONE, torch.zeros(0, 4))]
    scores = match_scores(logits, boxes, PaddedTargets.of(targets), torch.tensor(0.3))
    overlap = iou(cxcywh_to_xyxy(boxes[:, 0]), cxcywh_to_xyxy(targets[0].boxes))
    torch.testing.assert_close(scores[:, 0, 0], 0.3 * logits[:, 0, :, 2].sigmoid() + 0.7 * overlap)


def by_loops(scores, k, tau, cap, keep):
    """The released rule for one image, word by word."""
    objects, queries = scores.shape
    if not objects:
        return set()
    owner = [int(scores[:, q].argmax()) for q in range(queries)]
    positive = [q for q in range(queries) if scores[owner[q], q] >= tau]
    positive = sorted(set(positive) | {int(scores[g].argmax()) for g in range(objects)})
    if len(positive) > int(cap * queries):
        positive = sorted(positive, key=lambda q: keep[q])[: int(cap * queries)]
    found = set()
    for g in range(objects):
        count = sum(owner[q] == g for q in positive)
        found |= {(int(q), g) for q in scores[g].argsort(descending=True)[: min(count, k)]}
    return found


@pytest.mark.parametrize("cap", [0.25, 0.75])
def test_all_branches_layers_and_images_at_once_equal_a_loop(cap):
    torch.manual_seed(4)
    counts, k, tau, alpha = (3, 0, 7), (2, 5), (0.3, 0.5), (0.3, 0.8)
    targets = []
    for count in counts:
        box = torch.cat((0.3 + 0.4 * torch.rand(count, 2), 0.3 + 0.3 * torch.rand(count, 2)), dim=1)
        targets.append(Target(torch.randint(4, (count,)), box))
    logits, boxes = torch.randn(2, 3, 3, 20, 4), 0.3 + 0.3 * torch.rand(2, 3, 3, 20, 4)
    draws = RecordingDraws(Draws())
    assign_all = OneToManyAssigner(k=k, tau=tau, alpha=alpha, cap=cap)
    result, scores = assign_all(logits, boxes, PaddedTargets.of(targets), NOBODY, draws)
    assert scores.shape == (6, 3, 7, 20)
    assert len(draws.recorded) == 2 * 3 * 2  # none for the image without objects
    for branch in range(2):
        for layer in range(3):
            for image, count in enumerate(counts):
                keep = draws.recorded.get(f"assigner/branch_{branch}/layer_{layer}/image_{image}/keep")
                want = by_loops(scores[3 * branch + layer, image, :count], k[branch], tau[branch], cap, keep)
                mine = (result.sets == 3 * branch + layer) & (result.images == image)
                assert set(zip(result.queries[mine].tolist(), result.targets[mine].tolist())) == want
    again, _ = assign_all(logits, boxes, PaddedTargets.of(targets), NOBODY, ReplayDraws(draws.recorded))
    assert torch.equal(again.queries, result.queries)


def test_without_any_object_nothing_is_assigned():
    nothing = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2
    for rule in ("released", "paper"):
        logits, boxes = torch.zeros(1, 2, 2, 5, 4), torch.full((1, 2, 2, 5, 4), 0.5)
        result, _ = assigner(3, rule=rule)(logits, boxes, PaddedTargets.of(nothing), NOBODY, ReplayDraws({}))
        assert len(result.queries) == 0


def test_of_several_objects_of_a_query_that_with_the_highest_score_decides():
    scores = torch.tensor(WORKED)
    paired = torch.zeros(3, 8, dtype=torch.bool)
    for query, target in ((4, 2), (3, 1), (1, 1), (1, 0), (0, 0)):
        paired[target, query] = True
    result = assignment_of(paired[None, None], scores[None, None])
    decided = {(int(q), int(g)): bool(d) for q, g, d in zip(result.queries, result.targets, result.decides)}
    assert decided == {(4, 2): True, (3, 1): True, (1, 1): False, (1, 0): True, (0, 0): True}
    assert result.table((1, 1, 8)).flatten().tolist() == [0, 0, -1, 1, 2, -1, -1, -1]


def test_of_objects_with_equal_scores_the_last_one_decides():
    scores = torch.tensor([[[[0.5, 0.2], [0.5, 0.2], [0.5, 0.1]]]])
    paired = torch.tensor([[[[True, True], [True, True], [False, True]]]])
    result = merged(paired, scores, torch.full((1, 1, 2), -1))
    assert result.queries.tolist() == [0, 1] and result.targets.tolist() == [1, 1]
    assert assignment_of(paired, scores).table((1, 1, 2)).tolist() == [[[1, 1]]]


def test_one_to_many_pairs_replace_one_to_one_pairs():
    one_to_many = [(0, 1), (3, 0), (6, 1), (6, 0), (2, 2)]
    scores = torch.zeros(3, 10)
    for place, (query, target) in enumerate(one_to_many):  # ascending
        scores[target, query] = 0.5 + place / 10
    one_to_one = Assignment.of_pairs([[Pairs(torch.tensor([1, 7, 9]), torch.tensor([2, 0, 1]))]], "cpu")
    result = merged((scores > 0)[None, None], scores[None, None], one_to_one.table((1, 1, 10)))
    found = list(zip(result.queries.tolist(), result.targets.tolist()))
    assert found == [(0, 1), (1, 2), (2, 2), (3, 0), (6, 0), (7, 0), (9, 1)]
    assert result.decides.all()
