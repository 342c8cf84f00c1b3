"""Parameters that lie in pages of their own, or in a file."""
import copy
import mmap

import torch
from torch import nn

from lowrank_d2.engine.benchmark.measure import _status_mb
from seem.mapped import lay_apart, move_to_file


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96))


def test_laying_apart_changes_no_value():
    module, other = make(), make()
    lay_apart(module)
    weight = module[0].weight
    assert weight.data_ptr() % mmap.PAGESIZE == 0 and weight.requires_grad
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    x = torch.randn(5, 64)
    for each in (module, other, copy.deepcopy(module)):
        each(x).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert torch.equal(weight, other[0].weight)


def test_nothing_is_laid_apart_on_the_meta_device():
    with torch.device("meta"):
        module = make()
    lay_apart(module)
    assert module[0].weight.is_meta


def test_what_moves_to_a_file_leaves_the_memory_at_once():
    module = nn.ModuleList(nn.Linear(1024, 1024) for _ in range(32))  # 134 MB in pieces of 4
    lay_apart(module)
    before = _status_mb("VmRSS")
    assert move_to_file(module)
    assert before - _status_mb("VmRSS") > 120
