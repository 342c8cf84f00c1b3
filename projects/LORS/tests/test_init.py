"""Initial values: AdaMixer's are those of its authors' code, those of LORS the paper's."""
import math

import pytest
import torch

from lors.boxes import from_boxes
from lors.decoder import Decoder, Queries
from lors.mixing import MixingSize, Residual
from lors.neck import Neck
from lors.sampling import PointSampling
from lors.weights import to_upstream

SIZES = {"4x32": MixingSize(256, 4, 32, 128), "2x64": MixingSize(256, 2, 64, 128)}


def one_stage(size, **kinds):
    torch.manual_seed(0)
    return Decoder(size, num_stages=1, num_heads=8, feedforward_dim=2048, num_classes=80, **kinds)


@pytest.mark.parametrize("sampling", SIZES)
def test_statistics_are_those_of_the_authors_code(reference, sampling):
    parts = {
        "neck": Neck(in_channels=[256, 512, 1024, 2048], embed_dim=256),
        "queries": Queries(num_queries=100, embed_dim=256),
        "decoder": one_stage(SIZES[sampling]),
    }
    ours = {f"{part}.{name}": p.detach() for part, module in parts.items() for name, p in module.named_parameters()}
    ours = to_upstream(ours, SIZES[sampling])
    stored = reference("init.json")["statistics"][sampling]
    assert {name: list(x.shape) for name, x in ours.items()} == {name: spec["shape"] for name, spec in stored.items()}
    for name, spec in stored.items():
        values = ours[name]
        if spec["std"] == 0:
            assert torch.equal(values, torch.full_like(values, spec["max"])), name
            continue
        # Two draws of n values: their means are this far apart with a probability below 1 in 10,000.
        n = values.numel()
        assert abs(values.mean().item() - spec["mean"]) < 4 * spec["std"] * math.sqrt(2 / n) + 1e-4, name
        assert values.std(correction=0).item() == pytest.approx(spec["std"], rel=0.02 + 3 / math.sqrt(n)), name
        if n > 1000 and "init_content" not in name:  # all other distributions have bounds
            assert values.max().item() == pytest.approx(spec["max"], rel=0.01), name
            assert values.min().item() == pytest.approx(spec["min"], rel=0.01), name


@pytest.mark.parametrize("points", [16, 64])
def test_a_square_number_of_points_starts_as_a_grid(reference, points):
    sampling = PointSampling(embed_dim=32, groups=2, points=points)
    bias = sampling.offsets.bias.detach().view(2, points, 3)
    assert bias[0].tolist() == reference("init.json")[f"offset_bias_{points}_points"]
    assert torch.equal(bias[1], bias[0]) and not sampling.offsets.weight.any()


def test_other_numbers_of_points_are_drawn():
    bias = PointSampling(embed_dim=32, groups=20, points=32).offsets.bias.detach().view(20, 32, 3)
    assert (bias[..., 2] == -1).all()
    assert -0.5 <= bias[..., :2].min() < -0.49 and 0.49 < bias[..., :2].max() <= 0.5
    assert len(bias[..., :2].unique()) > 1200


def test_first_boxes_are_the_images(reference):
    queries = Queries(num_queries=3, embed_dim=32)
    for row in reference("init.json")["initial_xyzr"]:
        content, xyzr = queries([(row["height"], row["width"])])
        torch.testing.assert_close(xyzr[0, 2], torch.tensor(row["xyzr"]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(content.var(-1, correction=0), torch.ones(1, 3), rtol=0, atol=1e-4)
    boxes = from_boxes(torch.tensor([10.0, 20, 90.51, 181.02]))
    torch.testing.assert_close(boxes, torch.tensor([10.0, 20, 7, 1]), rtol=0, atol=1e-4)


def test_lors_starts_with_kaiming_weights_and_no_private_part():
    decoder = one_stage(SIZES["2x64"], adaptive=Residual(16, (3,)), static=Residual(8, (1,)))
    shared, mixing = decoder.shared, decoder.stages[0].mixing
    uniform = {  # tensor and its input side
        "generator": (shared.channel[0].weight, 256),
        "generator's bias": (shared.spatial[1].bias, 256),
        "projection": (shared.out_proj.weight, 32768),
        "projection's bias": (mixing.out_proj.bias, 32768),
        "static B": (mixing.out_proj.B, 32768),
        "channel B": (mixing.channel[0].B, 128),
        "channel A": (mixing.channel[1].A, 16),
        "spatial B": (mixing.spatial[1].B, 64),
        "spatial A": (mixing.spatial[0].A, 16),
    }
    for name, (tensor, fan_in) in uniform.items():
        bound = 1 / math.sqrt(fan_in)
        assert 0.95 * bound < tensor.abs().max().item() <= bound, name
        near = 0.02 + 3 / math.sqrt(tensor.numel())
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=near), name
    kernels = [*mixing.channel, *mixing.spatial]
    assert not mixing.out_proj.A.any() and not any(kernel.E.weight.any() or kernel.E.bias.any() for kernel in kernels)
