import itertools
import math

import pytest
import torch

from lowrank_d2.layers.ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample, ms_deform_attn_torch


def case(shapes=((6, 5), (3, 4)), n=2, q=7, m=3, d=4, p=2, spread=1.4, dtype=torch.float64):
    """value, shapes, locations (some outside), weights."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(n, cells, m, d, generator=generator)
    locations = (torch.rand(n, q, m, len(shapes), p, 2, generator=generator) - 0.5) * spread + 0.5
    weights = torch.rand(n, q, m, len(shapes), p, generator=generator)
    return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)


def by_definition(value, shapes, locations, weights):
    """Sums every cell's tent function: bilinear sampling cell by cell."""
    n, _, m, d = value.shape
    q, p = locations.shape[1], locations.shape[4]
    out = torch.zeros(n, q, m, d, dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(shapes):
        for y, x in itertools.product(range(height), range(width)):
            near_x = (1 - (locations[:, :, :, level, :, 0] * width - 0.5 - x).abs()).clamp(min=0)
            near_y = (1 - (locations[:, :, :, level, :, 1] * height - 0.5 - y).abs()).clamp(min=0)
            share = (weights[:, :, :, level] * near_x * near_y).sum(-1)
            out += share[..., None] * value[:, None, start + y * width + x]
        start += height * width
    return out.flatten(2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shapes": ((1, 1),), "p": 1},
        {"shapes": ((4, 1), (1, 6), (2, 2)), "d": 1},
        {"shapes": ((5, 5),), "m": 1, "d": 20, "q": 300},
        {"spread": 6.0},
        {"shapes": ((0, 3), (4, 4))},
    ],
    ids=str,
)
def test_it_is_a_weighted_sum_of_bilinear_samples(changes):
    inputs = case(**changes)
    torch.testing.assert_close(ms_deform_attn(*inputs), by_definition(*inputs))
    torch.testing.assert_close(by_grid_sample(*inputs), by_definition(*inputs))


@pytest.mark.parametrize("spread", [0.9, 2.5])
def test_gradients_are_those_of_grid_sample(spread):
    value, shapes, locations, weights = case(shapes=((16, 9), (5, 7)), q=40, m=4, d=8, p=4, spread=spread)
    gradients = []
    for function in (ms_deform_attn, by_grid_sample):
        inputs = [x.clone().requires_grad_() for x in (value, locations, weights)]
        out = function(inputs[0], shapes, *inputs[1:])
        gradients.append(torch.autograd.grad((out * torch.cos(torch.arange(out.numel()).view_as(out))).sum(), inputs))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("index", range(3))
def test_a_single_input_may_need_a_gradient(index):
    value, shapes, locations, weights = case(n=1, q=3)

    def function(x):
        inputs = [value, locations, weights]
        inputs[index] = x
        return ms_deform_attn(inputs[0], shapes, *inputs[1:])

    assert torch.autograd.gradcheck(function, [value, locations, weights][index].clone().requires_grad_())


def test_no_number_stays_in_its_own_head():
    value, shapes, locations, weights = case(dtype=torch.float32)
    expected = ms_deform_attn(value, shapes, locations, weights)
    for bad in (math.nan, math.inf, -math.inf):
        broken = locations.clone()
        broken[1, 2, 0, 1, 0, 0] = bad
        leaf = value.clone().requires_grad_()
        out = ms_deform_attn(leaf, shapes, broken, weights)
        hit = torch.zeros(2, 7, 3, 4, dtype=torch.bool)
        hit[1, 2, 0] = True
        assert out.isnan().equal(hit.flatten(2))
        torch.testing.assert_close(out[~hit.flatten(2)], expected[~hit.flatten(2)])
        out.nansum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("form", [ms_deform_attn, ms_deform_attn_torch])
def test_an_empty_level_is_left_out_with_all_that_is_no_number_there(form):
    value, shapes, locations, weights = case(shapes=((6, 5), (0, 4)), dtype=torch.float32)
    locations[:, :, :, 1], weights[:, :, :, 1] = math.nan, math.inf
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    out = form(leaves[0], shapes, *leaves[1:])
    torch.testing.assert_close(out, form(value, shapes[:1], locations[:, :, :, :1], weights[:, :, :, :1]))
    out.sum().backward()
    assert value.grad.isfinite().all()
    assert all(x.grad[:, :, :, 1].abs().max() == 0 and x.grad.isfinite().all() for x in leaves[1:])


@pytest.mark.parametrize("form", [ms_deform_attn, ms_deform_attn_torch])
def test_no_cells_at_all_read_zero_with_a_gradient(form):
    value, shapes, locations, weights = case(shapes=((0, 4),))
    out = form(value.requires_grad_(), shapes, locations, weights)
    out.sum().backward()
    assert out.abs().max() == 0 and value.grad.shape == value.shape


def test_offsets_at_an_empty_level_have_no_gradient():
    value, shapes, places, weights = case(shapes=((6, 5), (0, 4)), dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (value, places, weights)]
    reference = torch.full((1, places.shape[1], 2), 0.5, requires_grad=True)  # which asks for the PyTorch form
    ms_deform_attn_from_offsets(leaves[0], shapes, reference, *leaves[1:]).sum().backward()
    assert places.grad[:, :, :, 1].abs().max() == 0 and places.grad.isfinite().all()


def test_far_away_reads_zero():
    value, shapes, locations, weights = case(dtype=torch.float32)
    for far in (1e10, -1e10, 3.0, -2.0):
        assert ms_deform_attn(value, shapes, torch.full_like(locations, far), weights).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype):
    value, shapes, locations, weights = case(shapes=((200, 267),), m=1, d=8, q=50, p=4, dtype=torch.float32)
    out = ms_deform_attn(value.to(dtype), shapes, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, ms_deform_attn(value.to(dtype).float(), shapes, locations, weights).to(dtype))


@pytest.mark.parametrize("changes", [{"n": 0}, {"q": 0}], ids=str)
def test_nothing_to_do_is_allowed(changes):
    value, shapes, locations, weights = case(**changes)
    assert ms_deform_attn(value, shapes, locations, weights).shape == (len(value), locations.shape[1], 12)


def test_strided_inputs_give_the_same():
    value, shapes, locations, weights = case()
    strided = value.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    expanded = locations[:, :1].expand(-1, 7, -1, -1, -1, -1)
    torch.testing.assert_close(
        ms_deform_attn(strided, shapes, expanded, weights), ms_deform_attn(value, shapes, expanded.clone(), weights)
    )


def test_shapes_that_do_not_belong_together_are_refused():
    value, shapes, locations, weights = case()
    with pytest.raises(ValueError, match="42 cells"):
        ms_deform_attn(value, ((6, 5),), locations, weights)
    with pytest.raises(ValueError, match="do not fit"):
        ms_deform_attn(value, shapes, locations[:, :, :, :, :1], weights)
