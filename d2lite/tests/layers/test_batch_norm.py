from collections import OrderedDict

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from torch import nn


def trained_norm():
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4) + 0.5)
    return norm


class TestFrozen:
    def test_new_is_the_identity(self):
        x = torch.randn(2, 4, 3, 3)
        assert torch.allclose(FrozenBatchNorm2d(4)(x), x, atol=1e-6)
        assert list(FrozenBatchNorm2d(4).parameters()) == []

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_equals_the_trained_norm_in_eval_mode(self, requires_grad):
        norm = trained_norm().eval()
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
        x = torch.randn(2, 4, 3, 3, requires_grad=requires_grad)
        assert torch.allclose(frozen(x), norm(x), atol=1e-6)

    def test_half_precision_stays(self):
        x = torch.randn(1, 4, 2, 2, dtype=torch.bfloat16, requires_grad=True)
        assert FrozenBatchNorm2d(4)(x).dtype == torch.bfloat16

    def test_conversion_both_ways(self):
        model = nn.Sequential(trained_norm(), nn.Sequential(nn.SyncBatchNorm(4), nn.GroupNorm(2, 4)))
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
        assert frozen is model
        assert isinstance(model[0], FrozenBatchNorm2d) and isinstance(model[1][0], FrozenBatchNorm2d)
        assert isinstance(model[1][1], nn.GroupNorm) and "0.num_batches_tracked" in model.state_dict()
        weight = model[0].weight.clone()
        thawed = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(model)
        assert type(thawed[0]) is nn.BatchNorm2d and torch.equal(thawed[0].weight, weight)

    @pytest.mark.parametrize("version, missing", [(None, 0), (1, 0), (2, 2), (3, 2)])
    def test_old_checkpoints_have_no_statistics(self, version, missing):
        state = OrderedDict(weight=torch.full((4,), 2.0), bias=torch.ones(4))
        if version is not None:
            state._metadata = {"": {"version": version}}
        norm = FrozenBatchNorm2d(4)
        result = norm.load_state_dict(state, strict=False)
        assert len(result.missing_keys) == missing and norm.weight[0] == 2
        assert torch.allclose(norm.running_var, torch.ones(4), atol=2e-5)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        (lambda channels: nn.GroupNorm(4, channels), nn.GroupNorm),
    ],
)
def test_get_norm(name, kind):
    assert isinstance(get_norm(name, 64), kind)


def test_get_norm_others():
    assert get_norm("", 64) is None and get_norm(None, 64) is None
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError):
        get_norm("Nope", 64)


def test_layer_norm_is_over_channels():
    x = torch.randn(2, 4, 3, 5)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (4,), eps=1e-6).permute(0, 3, 1, 2)
    assert torch.allclose(get_norm("LN", 4)(x), expected, atol=1e-5)


def _worker(rank, address, whole, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    part = (whole[:1] if rank == 0 else whole[1:]).clone().requires_grad_()
    norm = NaiveSyncBatchNorm(3, stats_mode="N")
    out = norm(part)
    (out**3).sum().backward()
    results[rank] = (out.detach(), part.grad, norm.running_mean, norm.weight.grad)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_naive_sync_equals_the_whole_batch(tmp_path):
    whole = torch.randn(4, 3, 5, 5)
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, (f"file://{tmp_path}/store", whole, results), nprocs=2)
        (out0, grad0, mean0, weight0), (out1, grad1, mean1, weight1) = results[0], results[1]
    reference, x = nn.BatchNorm2d(3), whole.clone().requires_grad_()
    out = reference(x)
    (out**3).sum().backward()
    assert torch.allclose(torch.cat([out0, out1]), out, atol=1e-5)
    assert torch.allclose(torch.cat([grad0, grad1]), x.grad, atol=1e-4)
    assert torch.allclose(mean0, reference.running_mean, atol=1e-6) and torch.equal(mean0, mean1)
    assert torch.allclose(weight0 + weight1, reference.weight.grad, rtol=1e-4)
