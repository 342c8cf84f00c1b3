"""Stacks turned into shared and private weights: exact where the rank allows, best possible elsewhere."""
import copy

import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.low_rank import LowRankResidualLinear, share_stack
from lowrank_d2.layers.mlp import FeedForward
from lowrank_d2.peft import LoRA, inject


@pytest.fixture
def ffns():
    torch.manual_seed(0)
    return nn.ModuleList(FeedForward(embed_dim=16, hidden_dim=64) for _ in range(4))


def test_trained_weights_are_kept_as_the_rank_allows(ffns):
    before = copy.deepcopy(ffns)
    report = share_stack(ffns, 3)
    private = 3 * (16 + 64)
    assert report.parameters_before == sum(p.numel() for p in before.parameters()) == 4 * (2 * 1024 + 80 + 32)
    assert report.parameters_after == sum(p.numel() for p in ffns.parameters())
    assert report.parameters_after == 2 * 1024 + 4 * (2 * private + 80 + 32)
    for name in ("linear1", "linear2"):
        weights = torch.stack([getattr(ffn, name).weight for ffn in before])
        for ffn, old, error in zip(ffns, before, report.relative_error[name]):
            layer, trained = getattr(ffn, name), getattr(old, name)
            torch.testing.assert_close(layer.shared.weight, weights.mean(0))
            # Eckart and Young: no matrix of rank 3 is nearer to the difference than by its other singular values.
            rest = torch.linalg.svdvals(trained.weight - weights.mean(0))[3:].norm() / trained.weight.norm()
            assert error == pytest.approx(rest.item(), rel=1e-4)
            assert torch.equal(layer.bias, trained.bias)
    assert report.kept == ()


def test_weights_of_low_rank_around_their_mean_are_kept_exactly():
    torch.manual_seed(1)
    stack = nn.ModuleList(nn.Sequential(nn.Linear(40, 40)) for _ in range(2))
    with torch.no_grad():
        stack[1][0].weight.copy_(stack[0][0].weight + torch.randn(40, 1) @ torch.randn(1, 40))
    x = torch.randn(5, 40)
    expected = [layer(x) for layer in stack]
    report = share_stack(stack, 1)  # two weights lie on either side of their mean, here in one direction
    assert max(report.relative_error["0"]) < 1e-6
    for layer, y in zip(stack, expected):
        torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)


def test_from_scratch_all_layers_start_alike(ffns):
    before = copy.deepcopy(ffns)
    report = share_stack(list(ffns), 3, from_scratch=True)
    assert report.relative_error == {}
    first = ffns[0].linear1
    assert all(torch.equal(ffn.linear1.weight, first.shared.weight) and not ffn.linear1.A.any() for ffn in ffns)
    assert not torch.isclose(first.weight, before[0].linear1.weight).all()


def test_the_first_layer_owns_what_is_shared_and_all_learn(ffns):
    model = nn.Sequential(*ffns)
    share_stack(model, 3)
    names = {name for name in model.state_dict() if "shared" in name}
    assert names == {"0.linear1.shared.weight", "0.linear2.shared.weight"}
    assert all(ffn.linear2.shared is model[0].linear2.shared for ffn in model)
    model(torch.randn(3, 16)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    twin = copy.deepcopy(model)
    assert twin[3].linear1.shared is twin[0].linear1.shared is not model[0].linear1.shared


def test_torchs_attention_takes_a_shared_projection():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True) for _ in range(3)]
    x = torch.randn(2, 5, 24)
    share_stack(layers, 2)
    assert isinstance(layers[1].self_attn.out_proj, LowRankResidualLinear)
    merged = copy.deepcopy(layers[1])
    plain = nn.Linear(24, 24)
    plain.load_state_dict({"weight": merged.self_attn.out_proj.weight, "bias": merged.self_attn.out_proj.bias})
    merged.self_attn.out_proj = plain
    torch.testing.assert_close(layers[1](x), merged(x))


def test_small_linears_stay_as_they_are():
    layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2)) for _ in range(3))
    heads = [layer[1] for layer in layers]
    report = share_stack(layers, 4)
    assert report.kept == ("1",) and all(layer[1] is head for layer, head in zip(layers, heads))


def test_what_cannot_be_shared_is_named(ffns):
    state = {name: tensor.clone() for name, tensor in ffns.state_dict().items()}
    for layers, rank, words in (
        (ffns[:1], 2, "1 layers cannot share"),
        ([*ffns, FeedForward(embed_dim=16, hidden_dim=32)], 2, r"Layer 4 differs from layer 0 in the Linear 'linear1'"),
        (ffns, -1, "rank is -1"),
        (ffns, 16, "becomes smaller with rank 16: linear1, linear2"),
        ([ffns[0], ffns[1], ffns[0]], 2, "share the Linear 'linear1' already"),
        ([nn.ReLU(), nn.ReLU()], 2, "there are none"),
    ):
        with pytest.raises(ConfigError, match=words):
            share_stack(layers, rank)
    adapted = inject(nn.ModuleList(ffns), [LoRA(rank=2, targets=("linear2",))])
    with pytest.raises(ConfigError, match="'linear2' is adapted"):
        share_stack(adapted, 2)
    assert all(torch.equal(ffns.state_dict()[name], tensor) for name, tensor in state.items())
