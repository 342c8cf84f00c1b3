"""Branches of a feed-forward part against their formulas."""
import pytest
import torch
import torch.nn.functional as F

from lowrank_d2.layers.branches import FullBranches, LowRankBranches
from lowrank_d2.layers.mlp import FeedForward


@pytest.fixture
def ffn():
    torch.manual_seed(0)
    return FeedForward(embed_dim=6, hidden_dim=10, dropout=0.0)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 5, 6)


@pytest.mark.parametrize("init", ["zero", "xavier"])
def test_a_branch_is_the_feed_forward_part_with_updated_weights(ffn, x, init):
    torch.manual_seed(2)
    branches = LowRankBranches(count=3, embed_dim=6, hidden_dim=10, rank=2, init=init)
    out = branches(ffn, x, ffn.linear1(x))
    assert out.shape == (3, 2, 5, 6)
    for i, got in enumerate(out):
        first, second = branches.linear1[i], branches.linear2[i]
        hidden = F.relu(F.linear(x, ffn.linear1.weight + (first.A @ first.B).T, ffn.linear1.bias))
        change = F.linear(hidden, ffn.linear2.weight + (second.A @ second.B).T, ffn.linear2.bias)
        torch.testing.assert_close(got, ffn.norm(x + change))
    same = torch.allclose(out[0], ffn(x), atol=1e-6)
    assert same == (init == "zero")


def test_how_factors_start():
    torch.manual_seed(0)
    zero = LowRankBranches(count=1, embed_dim=256, hidden_dim=2048, rank=32, init="zero").linear1[0]
    assert zero.A.std().item() == pytest.approx(32**-0.5, rel=0.05) and zero.B.abs().max() == 0
    xavier = LowRankBranches(count=1, embed_dim=256, hidden_dim=2048, rank=32, init="xavier").linear1[0]
    assert xavier.A.std().item() == pytest.approx(0.0834, rel=0.05)  # measured in the released code: 0.0837
    assert xavier.B.std().item() == pytest.approx(0.0310, rel=0.05)  # and 0.0311


def test_one_branch_has_27648_parameters_per_rank_in_six_layers():
    branches = LowRankBranches(count=1, embed_dim=256, hidden_dim=2048, rank=5)
    assert 6 * sum(p.numel() for p in branches.parameters()) == 27_648 * 5


def test_dropout_is_drawn_anew_for_every_branch(x):
    torch.manual_seed(0)
    ffn = FeedForward(embed_dim=6, hidden_dim=10, dropout=0.5)
    branches = LowRankBranches(count=2, embed_dim=6, hidden_dim=10, rank=2)
    first, second = branches(ffn, x, ffn.linear1(x))
    assert not torch.equal(first, second)
    ffn.eval()
    first, second = branches(ffn, x, ffn.linear1(x))
    torch.testing.assert_close(first, second)


def test_full_branches_are_feed_forward_parts_of_their_own(x):
    torch.manual_seed(3)
    branches = FullBranches(count=2, embed_dim=6, hidden_dim=10)
    out = branches(x)
    for got, branch in zip(out, branches):
        torch.testing.assert_close(got, branch(x))
    assert set(branches.state_dict()) >= {"0.linear1.weight", "1.norm.bias"}
