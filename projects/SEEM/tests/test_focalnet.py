"""FocalNet: its focal modulation by the formula, and pixels that pass in pieces."""
import pytest
import torch
import torch.nn.functional as F

from seem import focalnet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return focalnet.FocalNet(embed_dim=8, depths=[1, 1, 1, 1], focal_levels=[2, 2, 2, 2], focal_windows=[3, 3, 3, 3])


@pytest.mark.parametrize("scaled", [True, False])
def test_modulation_weighs_surroundings_and_the_whole(scaled):
    torch.manual_seed(1)
    part = focalnet._FocalModulation(8, levels=3, window=3, scaled=scaled)
    x = torch.randn(2, 5, 7, 8)
    query, context, gates = F.linear(x, part.f.weight, part.f.bias).permute(0, 3, 1, 2).split((8, 8, 4), dim=1)
    total = 0
    for level in range(3):
        context = F.gelu(F.conv2d(context, part.focal_layers[level][0].weight, padding=1 + level, groups=8))
        total = total + context * gates[:, level, None]
    total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, 3, None]
    modulated = query * part.h(total / 4 if scaled else total)
    expected = F.linear(modulated.permute(0, 2, 3, 1), part.proj.weight, part.proj.bias)
    torch.testing.assert_close(part(x), expected)


def test_pieces_of_the_pixels_change_nothing(net, monkeypatch):
    images = torch.randn(1, 3, 96, 64)
    recorded = net(images)
    largest = []
    whole = focalnet._PixelNetwork._whole
    monkeypatch.setattr(focalnet, "TOKENS_AT_ONCE", 50)
    monkeypatch.setattr(focalnet._PixelNetwork, "_whole", lambda self, x: largest.append(x.shape[:-1].numel()) or whole(self, x))
    with torch.no_grad():
        pieces = net(images)
    assert max(largest) == 50 and sum(largest) == 24 * 16 + 12 * 8 + 6 * 4 + 3 * 2
    for name, feature in recorded.items():
        torch.testing.assert_close(pieces[name], feature.detach())
    sum(feature.sum() for feature in net(images).values()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_images_with_large_maps_pass_one_by_one(net, monkeypatch):
    images = torch.randn(3, 3, 96, 64)
    recorded = net(images)
    batches = []
    blocks = focalnet._Stage._blocks
    monkeypatch.setattr(focalnet, "LARGE_MAP", 12 * 8 * 16)
    monkeypatch.setattr(focalnet._Stage, "_blocks", lambda self, x: batches.append(len(x)) or blocks(self, x))
    with torch.no_grad():
        apart = net(images)
    assert batches == [1, 1, 1, 1, 1, 1, 3, 3]
    for name, feature in recorded.items():
        torch.testing.assert_close(apart[name], feature.detach())


@pytest.mark.parametrize("size", [(96, 64), (72, 40)])
def test_maps_that_have_their_memory_beforehand_are_the_same(net, size):
    images = torch.randn(2, 3, *size)
    recorded = net(images)
    with torch.no_grad():
        features = net(images)
    assert list(features) == list(recorded)
    for name, feature in recorded.items():
        assert features[name].stride() == feature.stride()
        torch.testing.assert_close(features[name], feature.detach())


def test_autocast_keeps_the_precision_that_it_gives_the_maps(net):
    images = torch.randn(1, 3, 96, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recorded = net(images)
        with torch.no_grad():
            features = net(images)
    for name, feature in recorded.items():
        assert features[name].dtype == feature.dtype
        torch.testing.assert_close(features[name], feature.detach(), rtol=0.05, atol=0.05)
