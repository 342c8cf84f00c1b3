import pytest
import torch
from detectron2.layers import ShapeSpec

from lowrank_d2.layers.position_encoding import encode_cells
from lowrank_d2.modeling.maskdino.pixel_decoder import MaskDINOPixelDecoder

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
CHANNELS = {"res2": 8, "res3": 16, "res4": 24, "res5": 32}


def build(**changes):
    torch.manual_seed(0)
    arguments = {
        "input_shape": {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in STRIDES},
        "encoder_features": ("res3", "res4", "res5"),
        "embed_dim": 32,
        "mask_dim": 12,
        "norm": "GN",
        "num_layers": 1,
        "num_levels": 4,
        "num_heads": 4,
        "feedforward_dim": 16,
        "dropout": 0.0,
        "feature_order": "low2high",
    }
    return MaskDINOPixelDecoder(**{**arguments, **changes}).eval()


def backbone_maps(height=64, width=96):
    torch.manual_seed(1)
    return {name: torch.randn(2, CHANNELS[name], height // s, width // s) for name, s in STRIDES.items()}


@pytest.mark.parametrize("order, levels, sizes", [
    ("low2high", 3, [(8, 12), (4, 6), (2, 3)]),
    ("low2high", 4, [(8, 12), (4, 6), (2, 3), (1, 2)]),
    ("low2high", 5, [(8, 12), (4, 6), (2, 3), (1, 1), (1, 2)]),
    ("high2low", 4, [(1, 2), (2, 3), (4, 6), (8, 12)]),
    ("high2low", 5, [(1, 1), (1, 2), (2, 3), (4, 6), (8, 12)]),
])  # fmt: skip
def test_levels_and_their_order(order, levels, sizes):
    out = build(feature_order=order, num_levels=levels)(backbone_maps())
    assert [tuple(x.shape[-2:]) for x in out.memory] == sizes
    assert out.mask_features.shape == (2, 12, 16, 24) and out.padding is None


@pytest.mark.parametrize("order, expected", [("low2high", "res3 res5 res4"), ("high2low", "res5 res4 res3")])
def test_of_two_maps_with_one_stride_the_later_comes_first(order, expected):
    shapes = {name: ShapeSpec(channels=CHANNELS[name], stride=min(STRIDES[name], 16)) for name in STRIDES}
    decoder = build(input_shape=shapes, feature_order=order)
    assert decoder.in_features == tuple(expected.split())
    widths = [projection[0].in_channels for projection in decoder.input_proj]
    assert widths == [CHANNELS[name] for name in (*decoder.in_features, "res5")]


@pytest.mark.parametrize("aligned", [False, True])
def test_extra_levels_exchange_their_encodings_unless_aligned(aligned):
    decoder = build(num_levels=5, aligned_encodings=aligned)
    seen = []
    decoder.encoder[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    decoder(backbone_maps(128, 192))  # extra maps: 2 x 3 and 1 x 2, in the order 1 x 2, 2 x 3
    last, own = seen[0][0, -8:], decoder.level_embed
    coarse, coarser = (encode_cells(shape, 32, like=last)[0] for shape in ((2, 3), (1, 2)))
    parts = (coarser + own[3], coarse + own[4]) if aligned else (coarse + own[3], coarser + own[4])
    torch.testing.assert_close(last, torch.cat(parts))


def test_the_first_extra_level_reads_the_raw_backbone():
    decoder = build(num_levels=5)
    assert decoder.input_proj[3][0].in_channels == 32 and decoder.input_proj[4][0].in_channels == 32
    seen = []
    decoder.input_proj[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    maps = backbone_maps()
    decoder(maps)
    assert torch.equal(seen[0], maps["res5"])


def test_without_a_norm_the_pyramid_has_biases():
    names = {name for name, _ in build(norm="").named_parameters() if name.startswith(("lateral", "output"))}
    assert names == {"lateral.0.weight", "lateral.0.bias", "output.0.weight", "output.0.bias"}


def test_padding_changes_nothing_in_the_image():
    """With the share of the canvas that is image, what stands in the padding of coarse cells is not attended to."""
    decoder = build(num_levels=3)
    decoder.input_proj[0][1] = decoder.input_proj[1][1] = decoder.input_proj[2][1] = torch.nn.Identity()
    maps = backbone_maps()
    changed = {name: x.clone() for name, x in maps.items()}
    for x in changed.values():
        x[1, :, :, x.shape[3] * 2 // 3 :] = 5.0
    valid = torch.tensor([[1.0, 1.0], [1.0, 2 / 3]])
    one, other = decoder(maps, valid), decoder(changed, valid)
    for a, b, padding in zip(one.memory, other.memory, one.padding):
        assert padding[0].sum() == 0 and padding[1].float().mean() == pytest.approx(1 / 3)
        torch.testing.assert_close(a.masked_fill(padding[:, None], 0), b.masked_fill(padding[:, None], 0))


def test_it_computes_in_float32_under_autocast():
    decoder = build()
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder({name: x.bfloat16() for name, x in backbone_maps().items()})
    assert {out.mask_features.dtype, *(x.dtype for x in out.memory)} == {torch.float32}
