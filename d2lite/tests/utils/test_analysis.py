import pytest
import torch
from detectron2.utils.analysis import find_unused_parameters, parameter_count
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(2, 1)
        self.unused = nn.Linear(2, 3)

    def forward(self, x):
        return {"loss": self.used(x).sum(), "other": self.used.bias.sum()}


def test_find_unused_parameters():
    net = Net()
    assert find_unused_parameters(net, torch.ones(1, 2)) == ["unused.weight", "unused.bias"]
    assert all(parameter.grad is None for parameter in net.parameters())
    with pytest.raises(AssertionError):
        find_unused_parameters(net.eval(), torch.ones(1, 2))


def test_parameter_count():
    count = parameter_count(Net())
    assert (count[""], count["used"], count["unused"]) == (12, 3, 9)
