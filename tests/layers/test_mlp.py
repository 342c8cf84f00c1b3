import torch
import torch.nn.functional as F

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
