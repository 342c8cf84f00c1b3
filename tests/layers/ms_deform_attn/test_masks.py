"""The compiled kernels for masks at points against PyTorch's grid_sample, on every instruction set of the machine."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lowrank_d2.layers.points import sample_at

ops = torch.ops.lowrank_d2


def values_of(masks, points):
    return sample_at(masks[:, None], points[:, None])[:, 0, 0]


def some(n=3, height=7, width=5, count=70, seed=0):
    """Masks, and points of which some lie on their edges and outside."""
    generator = torch.Generator().manual_seed(seed)
    points = 1.4 * torch.rand((n, count, 2), generator=generator) - 0.2
    points[:, ::7] = points[:, ::7].round(decimals=1)
    return torch.randn((n, height, width), generator=generator), points


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 4), height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(0, 200), seed=st.integers(0, 99)
)
def test_values_and_gradients_agree_with_grid_sample_for_any_size(compiled, n, height, width, count, seed):
    masks, points = some(n, height, width, count, seed)
    masks.requires_grad_()
    if n == 0 or count == 0:
        assert ops.masks_at_points(masks, points, None).shape == (n, count)
        return
    expected = values_of(masks, points)
    assert_close(ops.masks_at_points(masks.detach(), points, None), expected.detach(), rtol=1e-4, atol=1e-5)
    grad = torch.cos(torch.arange(float(n * count))).view(n, count)
    assert_close(
        ops.masks_at_points_backward(grad, points, height, width),
        torch.autograd.grad(expected, masks, grad)[0],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 20_000])
def test_every_instruction_set_agrees(instruction_set, count):
    masks, points = some(count=count)
    assert_close(ops.masks_at_points(masks, points, None), values_of(masks, points), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 2, 0])
    labels = ops.masks_at_points(masks > 0, points, rows)
    assert_close(labels, values_of((masks > 0).float()[rows], points), rtol=1e-4, atol=1e-5)
    for keep in {0, 1, count // 4, count - 1, count}:
        chosen = ops.least_certain_points(masks, points, keep)
        distance = ops.masks_at_points(masks, points, None).abs()
        assert_close(values_of(masks, chosen).abs().sort(1)[0], distance.sort(1)[0][:, :keep], rtol=1e-4, atol=1e-5)


def test_the_chosen_points_keep_their_order_and_ties_go_to_the_first(instruction_set):
    points = torch.rand(1, 500, 2)
    assert torch.equal(ops.least_certain_points(torch.zeros(1, 4, 4), points, 200), points[:, :200])
    ramp = torch.linspace(-1, 1, 64).expand(1, 64, 64).contiguous()
    distance = ops.masks_at_points(ramp, points, None).abs()[0]
    limit = distance.sort()[0][99]
    assert torch.equal(ops.least_certain_points(ramp, points, 100)[0], points[0, distance <= limit][:100])


def test_zeros_infinities_and_numbers_near_zero_are_ordered(instruction_set):
    """Each pixel's centre is a candidate."""
    row = torch.tensor([math.inf, 1e-40, -0.0, 3.0, -1e-38, -math.inf, 1e-45, 0.0])
    masks = row.expand(1, 1, 8).contiguous()
    points = torch.stack(((torch.arange(8) + 0.5) / 8, torch.full((8,), 0.5)), dim=1)[None]
    # Pixels 4 and 6 have neighbours of share 0, of which the infinite one makes no number, as in grid_sample.
    for keep, expected in ((2, [2, 7]), (3, [2, 6, 7]), (4, [1, 2, 6, 7]), (5, [1, 2, 3, 6, 7])):
        kept = ops.least_certain_points(masks, points, keep)
        assert [int(x * 8) for x in kept[0, :, 0]] == expected


def test_points_that_are_no_numbers_or_far_away_read_nothing_and_break_nothing(instruction_set):
    masks, _ = some(n=1)
    points = torch.tensor([[[math.nan, 0.5], [math.inf, 0.5], [-math.inf, 0.5], [1e30, -1e30], [0.5, math.nan]]])
    values = ops.masks_at_points(masks, points, None)
    assert not values.nan_to_num(0, 0, 0).any()
    assert not ops.masks_at_points_backward(torch.ones(1, 5), points, 7, 5).nan_to_num(0, 0, 0).any()


def test_other_layouts_and_any_number_of_threads_give_the_same_bits(compiled):
    masks, points = some(n=9, height=30, width=20, count=9000)
    grad, threads = torch.randn(9, 9000), torch.get_num_threads()

    def results(masks, points):
        return (
            ops.masks_at_points(masks, points, None),
            ops.masks_at_points_backward(grad, points, 30, 20),
            ops.least_certain_points(masks, points, 2000),
            ops.uniform_numbers(4, 300_001),
        )

    expected = results(masks, points)
    turned = masks.transpose(1, 2).contiguous().transpose(1, 2)
    spaced = torch.stack((points, points), dim=-1)[..., 0]
    try:
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            assert all(map(torch.equal, results(turned, spaced), expected))
    finally:
        torch.set_num_threads(threads)


def test_what_does_not_fit_is_refused(compiled):
    masks, points = some()
    for call in (
        lambda: ops.masks_at_points(masks.double(), points, None),
        lambda: ops.masks_at_points(masks, points.double(), None),
        lambda: ops.masks_at_points(masks[:2], points, None),
        lambda: ops.masks_at_points(masks, points, torch.tensor([0, 1, 3])),
        lambda: ops.masks_at_points(masks, points, torch.tensor([0, 1])),
        lambda: ops.masks_at_points(masks[:, :0], points, None),
        lambda: ops.masks_at_points_backward(torch.ones(3, 69), points, 7, 5),
        lambda: ops.least_certain_points(masks, points, 71),
    ):
        with pytest.raises(RuntimeError, match="masks at points"):
            call()


def test_the_operators_are_registered_as_pytorch_demands(compiled):
    masks, points = some()
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.masks_at_points.default, (masks, points, None), test_utils=tests)
    torch.library.opcheck(ops.masks_at_points.default, (masks > 0, points, torch.tensor([0, 0, 2])), test_utils=tests)
    torch.library.opcheck(ops.masks_at_points_backward.default, (torch.ones(3, 70), points, 7, 5), test_utils=tests)
    torch.library.opcheck(ops.least_certain_points.default, (masks, points, 9), test_utils=tests)
