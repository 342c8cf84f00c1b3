import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.layers import points as points_room
from lowrank_d2.layers.points import (
    labels_at,
    least_certain,
    mask_losses_at,
    pairwise_bce_and_dice,
    point_bce,
    point_dice,
    sample_at,
    sample_rows,
)


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Both forms of what the compiled library computes where there is one."""
    if request.param == "torch":
        monkeypatch.setattr(points_room, "has_kernel", lambda device: False)
    elif not points_room.has_kernel("cpu"):
        pytest.skip("no compiled operator on this machine")


def test_samples_are_bilinear_between_pixel_centers_and_zero_outside():
    maps = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, None]
    points = torch.tensor([[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.75, 0.75], [0.0, 0.25]])
    # (0, 0.25) lies half a pixel left of the first center: half of it is outside.
    assert sample_at(maps, points[None, None]).flatten().tolist() == [1.0, 2.0, 4.0, 7.0, 0.5]


def test_sampling_commutes_with_the_product_of_embedding_and_features():
    torch.manual_seed(0)
    embed, features, points = torch.randn(6, 8), torch.randn(1, 8, 5, 7), torch.rand(1, 1, 40, 2)
    masks = torch.einsum("qm,nmhw->nqhw", embed, features)
    torch.testing.assert_close(embed @ sample_at(features, points)[0, :, 0], sample_at(masks, points)[0, :, 0])


def test_rows_of_a_table_are_sampled_like_a_map():
    torch.manual_seed(0)
    maps, points = torch.randn(1, 8, 5, 7), torch.rand(200, 2)
    points[:5] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.999], [0.071, 0.1]])
    table = maps[0].flatten(1).T.contiguous()
    torch.testing.assert_close(sample_rows(table, (5, 7), points), sample_at(maps, points[None, None])[0, :, 0].T)


def test_least_certain_keeps_the_smallest_logits_of_each_mask(form):
    torch.manual_seed(0)
    masks, candidates = torch.randn(3, 4, 6, requires_grad=True), torch.rand(3, 50, 2)
    chosen = least_certain(masks, candidates, 20)
    logits = sample_at(masks[:, None], candidates[:, None])[:, 0, 0].abs()
    kept = sample_at(masks[:, None], chosen[:, None])[:, 0, 0].abs()
    assert not chosen.requires_grad
    torch.testing.assert_close(kept.sort(1).values, logits.sort(1).values[:, :20])


def test_pairwise_losses_equal_those_of_the_formed_pairs():
    torch.manual_seed(0)
    logits, labels = 10 * torch.randn(5, 30), torch.rand(3, 30)
    logits[0, 0], logits[0, 1] = 200.0, -200.0
    bce, dice = pairwise_bce_and_dice(logits, labels)
    for q in range(5):
        repeated = logits[q].expand(3, -1)
        expected = F.binary_cross_entropy_with_logits(repeated, labels, reduction="none").mean(1)
        torch.testing.assert_close(bce[q], expected)
        torch.testing.assert_close(bce[q], point_bce(repeated, labels))
        torch.testing.assert_close(dice[q], point_dice(repeated, labels))


def test_dice_of_known_masks():
    logits, labels = torch.tensor([[50.0, 50.0, -50.0, -50.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(point_dice(logits, labels), torch.tensor([1 - 3 / 5]))


def test_labels_are_the_masks_of_the_rows_at_their_points(form):
    torch.manual_seed(0)
    masks, points = torch.rand(3, 8, 6) > 0.5, torch.rand(8, 40, 2)
    for rows, groups in ((torch.tensor([2, 0] * 4), 4), (torch.tensor([0, 1, 2, 2, 1, 0, 1, 2]), 1)):
        expected = sample_at(masks[rows, None].float(), points[:, None])[:, 0, 0]
        torch.testing.assert_close(labels_at(masks, rows, points, groups), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_mask_losses_have_the_plain_form_s_values_and_gradients_and_keep_no_map(form, dtype):
    torch.manual_seed(0)
    masks = (3 * torch.randn(4, 9, 11, dtype=dtype)).requires_grad_()
    points, labels = torch.rand(4, 50, 2, dtype=dtype), torch.rand(4, 50, dtype=dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        actual = mask_losses_at(masks, points, labels)
    assert sorted(kept) == [(4, 50), (4, 50), (4, 50, 2)]
    logits = sample_at(masks[:, None], points[:, None])[:, 0, 0]
    expected = point_bce(logits, labels), point_dice(logits, labels)
    seeds = torch.randn(2, 4, dtype=dtype)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other)
    for some in (slice(0, 1), slice(1, 2), slice(0, 2)):  # each loss alone, and both
        gradients = [torch.autograd.grad(of[some], masks, list(seeds[some]), True)[0] for of in (actual, expected)]
        torch.testing.assert_close(*gradients)


def test_mask_losses_of_no_masks_have_a_gradient(form):
    masks = torch.randn(0, 9, 11, requires_grad=True)
    sum(loss.sum() for loss in mask_losses_at(masks, torch.rand(0, 5, 2), torch.rand(0, 5))).backward()
    assert masks.grad.shape == (0, 9, 11)
