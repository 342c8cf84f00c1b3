import torch
import torch.nn.functional as F

from lowrank_d2.layers import mlp as module
from lowrank_d2.layers.mlp import MLP, FeedForward


def test_mlp_has_relu_between_its_layers_only():
    mlp = MLP(input_dim=3, hidden_dim=5, output_dim=2, num_layers=3)
    x = torch.randn(4, 3)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(F.relu(second(F.relu(first(x))))))
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(5, 3), (5, 5), (2, 5)]


def test_feed_forward_adds_to_the_stream_before_its_norm():
    block = FeedForward(embed_dim=6, hidden_dim=10)
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(block(x), block.norm(x + block.linear2(F.relu(block.linear1(x)))))


def test_feed_forward_in_pieces_is_the_same_and_never_has_the_hidden_layer_whole(monkeypatch):
    block = FeedForward(embed_dim=6, hidden_dim=10)
    x = torch.randn(2, 7, 6)
    expected = block(x)
    sizes = []
    block.linear2.register_forward_pre_hook(lambda linear, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 4)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected.detach())
    assert sizes == [4, 4, 4, 2]


def test_a_frozen_feed_forward_works_in_pieces_in_training_unless_its_input_has_a_gradient(monkeypatch):
    block = FeedForward(embed_dim=6, hidden_dim=10).requires_grad_(False)
    calls = []
    block.linear1.register_forward_pre_hook(lambda linear, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 4)
    x = torch.randn(8, 6)
    block(x)
    assert calls == [4, 4]
    block(x.requires_grad_()).sum().backward()
    assert calls == [4, 4, 8] and x.grad is not None
