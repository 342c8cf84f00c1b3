import pytest
import torch
from torch import nn

import detectron2

LITE = getattr(detectron2, "__runtime__", None) == "lite"
if not LITE:
    pytest.importorskip("timm", reason="a full Detectron2's Swin takes DropPath from timm")

from detectron2.modeling.backbone.swin import (  # noqa: E402
    PatchMerging,
    SwinTransformer,
    WindowAttention,
    window_partition,
    window_reverse,
)

mended = pytest.mark.skipif(not LITE, reason="a defect of Detectron2 that the lite runtime mends")
lite_only = pytest.mark.skipif(not LITE, reason="an internal of the lite runtime")


def small(**options):
    return SwinTransformer(embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4, out_indices=(0, 1), **options)


def test_windows_are_cut_and_put_together():
    x = torch.arange(2 * 4 * 6 * 1.0).reshape(2, 4, 6, 1)
    windows = window_partition(x, 2)
    assert tuple(windows.shape) == (12, 2, 2, 1)
    assert windows[1, ..., 0].tolist() == [[2, 3], [8, 9]]
    assert torch.equal(window_reverse(windows, 2, 4, 6), x)


def test_any_size_gives_the_promised_shapes():
    model = SwinTransformer(embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    outputs = model(torch.zeros(1, 3, 37, 50))
    expected = {"p0": (1, 12, 10, 13), "p1": (1, 24, 5, 7), "p2": (1, 48, 3, 4), "p3": (1, 96, 2, 2)}
    assert {name: tuple(value.shape) for name, value in outputs.items()} == expected
    shapes = model.output_shape()
    assert [(shapes[name].channels, shapes[name].stride) for name in expected] == [(12, 4), (24, 8), (48, 16), (96, 32)]


def test_names_of_the_weights():
    names = set(small().state_dict())
    block = "layers.0.blocks.1."
    assert {name[len(block) :] for name in names if name.startswith(block)} == {
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
        "attn.relative_position_bias_table", "attn.relative_position_index",
        "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
        "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    }  # fmt: skip
    assert {name for name in names if not name.startswith("layers.")} == {
        "patch_embed.proj.weight", "patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias",
        "norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias",
    }  # fmt: skip
    assert {name for name in names if "downsample" in name} == {
        f"layers.0.downsample.{name}" for name in ("reduction.weight", "norm.weight", "norm.bias")
    }


def test_attention_is_softmax_over_biased_logits():
    torch.manual_seed(0)
    attention = WindowAttention(4, (2, 2), num_heads=1)
    x = torch.randn(1, 4, 4)
    q, k, v = attention.qkv(x)[0].split(4, dim=1)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    bias = torch.empty(4, 4)
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            index = (row - other_row + 1) * 3 + column - other_column + 1
            bias[i, j] = attention.relative_position_bias_table[index, 0]
    expected = attention.proj((q @ k.T / 2 + bias).softmax(1) @ v)
    assert torch.allclose(attention(x)[0], expected, atol=1e-6)


def test_a_shifted_window_does_not_mix_the_borders():
    """The last row of pixels must not reach the first, which rolling puts beside it."""
    torch.manual_seed(0)
    model = SwinTransformer(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, out_indices=(0,)).eval()
    image = torch.randn(1, 3, 48, 48, requires_grad=True)  # 12 x 12 places, three windows
    model(image)["p0"][0, :, 0, 0].square().sum().backward()
    reached = image.grad[0].abs().sum(0) > 1e-9
    assert reached[:16, :16].any()
    assert not reached[32:].any() and not reached[:, 32:].any()


def test_patches_merge_column_by_column():
    merging = PatchMerging(1)
    nn.init.eye_(merging.reduction.weight)
    merging.norm = nn.Identity()
    x = torch.tensor([[1.0, 3.0], [2.0, 4.0]])[None, :, :, None]
    merged = merging(x) if LITE else merging(x.flatten(1, 2), 2, 2)
    assert merged.flatten().tolist() == [1, 2]  # of 1, 2, 3, 4 the reduction keeps two


def test_stochastic_depth_grows_linearly():
    blocks = [block for layer in small(drop_path_rate=0.3).layers for block in layer.blocks]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    text = [repr(block.drop_path) for block in blocks[1:]]
    assert text == [f"DropPath(drop_prob={rate})" for rate in ("0.100", "0.200", "0.300")]


@lite_only
def test_drop_path_keeps_the_mean():
    from detectron2.modeling.backbone.swin import DropPath

    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2)
    dropped = drop(x)
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    "stages, frozen",
    [(-1, []), (0, ["patch_embed"]), (1, ["patch_embed", "absolute_pos_embed"]), (2, ["layers.0"])],
)
def test_freezing(stages, frozen):
    model = small(frozen_stages=stages, ape=True)
    for name, parameter in model.named_parameters():
        if stages == 2:
            first = ("patch_embed", "absolute_pos_embed", "layers.0")
            assert parameter.requires_grad != name.startswith(first), name
        else:
            assert parameter.requires_grad != name.startswith(tuple(frozen) or "nothing"), name


def test_position_embedding_follows_the_image():
    model = small(ape=True, pretrain_img_size=32).eval()
    assert tuple(model.absolute_pos_embed.shape) == (1, 12, 8, 8)
    assert tuple(model(torch.zeros(1, 3, 64, 40))["p0"].shape) == (1, 12, 16, 10)


def test_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = small(drop_path_rate=0.0)
    image = torch.randn(1, 3, 40, 40, requires_grad=True)
    plain = model(image)["p1"]
    (expected,) = torch.autograd.grad(plain.square().sum(), image)
    for layer in model.layers:
        layer.use_checkpoint = True
    again = model(image)["p1"]
    assert torch.equal(again, plain)
    again.square().sum().backward()
    assert torch.allclose(image.grad, expected)


@mended
def test_size_divisibility():
    assert SwinTransformer(embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).size_divisibility == 32
