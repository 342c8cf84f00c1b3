import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import LoKr, inject
from lowrank_d2.peft.lokr import split


@pytest.mark.parametrize(
    "size, factor, sizes",
    [(384, -1, (16, 24)), (384, 4, (4, 96)), (384, 5, (4, 96)), (384, 96, (96, 4)), (127, -1, (1, 127)),
     (127, 127, (127, 1)), (36, -1, (6, 6)), (12, 5, (3, 4)), (1, -1, (1, 1))],
)
def test_sizes_are_split_as_the_original_does(size, factor, sizes):
    assert split(size, factor) == sizes


def shapes(method, module):
    model = inject(nn.Sequential(module), [method])
    return {name: tuple(tensor.shape) for name, tensor in model[0].named_parameters() if "lokr" in name}


def test_factors_are_decomposed_where_that_makes_them_smaller():
    where = {"targets": ("0",)}
    assert shapes(LoKr(16, factor=4, **where), nn.Linear(384, 384)) == {
        "lokr_w1": (4, 4), "lokr_w2_a": (96, 16), "lokr_w2_b": (16, 96)}
    assert shapes(LoKr(2, factor=6, decompose_both=True, **where), nn.Linear(36, 36)) == {
        "lokr_w1_a": (6, 2), "lokr_w1_b": (2, 6), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 6)}
    both = LoKr(3, factor=6, decompose_both=True, **where)
    assert shapes(both, nn.Linear(36, 36)) == {"lokr_w1": (6, 6), "lokr_w2": (6, 6)}
    conv = nn.Conv2d(8, 12, 3)
    assert shapes(LoKr(1, **where), conv) == {"lokr_w1": (3, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 36)}
    assert shapes(LoKr(1, effective_conv2d=True, **where), nn.Conv2d(8, 12, 3)) == {
        "lokr_w1": (3, 2), "lokr_t2": (1, 1, 3, 3), "lokr_w2_a": (1, 4), "lokr_w2_b": (1, 4)}
    assert shapes(LoKr(2, **where), nn.Conv2d(8, 12, 3)) == {"lokr_w1": (3, 2), "lokr_w2": (4, 4, 3, 3)}


def test_the_update_is_the_scaled_kronecker_product():
    model = inject(nn.Sequential(nn.Linear(384, 384)), [LoKr(16, 8, factor=4, targets=("0",))])
    linear = model[0]
    nn.init.normal_(linear.lokr_w1)
    want = 0.5 * torch.kron(linear.lokr_w1, linear.lokr_w2_a @ linear.lokr_w2_b)
    torch.testing.assert_close(linear.weight - linear.stored_weight, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0, -2, 2.5])
def test_wrong_factors_are_named(factor):
    with pytest.raises(ConfigError, match=f"MODEL.PEFT.LOKR.FACTOR is {factor}"):
        LoKr(factor=factor)
