import pytest
import torch

from lowrank_d2.engine.benchmark.ms_deform_attn import LEVELS, published_form, reference_case, run
from lowrank_d2.layers.ms_deform_attn import ms_deform_attn


def test_the_reference_case_is_the_documented_one():
    value, locations, weights, grad = reference_case()
    assert value.shape == (1, 17821, 8, 32) and locations.shape == (1, 17821, 8, 4, 4, 2)
    assert value.double().sum().item() == pytest.approx(17.378, abs=2e-3)
    assert grad.double().sum().item() == pytest.approx(-2171.150, abs=2e-3)
    assert locations.double().sum().item() == pytest.approx(2281098.8, abs=0.1)
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(1, 17821, 8))
    assert reference_case("uniform")[1].double().sum().item() == pytest.approx(2280583.0, abs=0.1)


def test_the_published_form_computes_what_ours_does():
    torch.manual_seed(0)
    shapes = [(6, 7), (3, 4), (2, 2), (1, 1)]
    value, locations = torch.randn(2, 59, 3, 5), 1.4 * torch.rand(2, 11, 3, 4, 2, 2) - 0.2
    weights = torch.rand(2, 11, 3, 4, 2)
    assert len(LEVELS) == len(shapes)
    expected = published_form(value, shapes, locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights), expected)


@pytest.mark.slow
def test_the_report_has_its_keys_and_sensible_numbers():
    report = run(rounds=1)
    assert {"forward_ratio", "backward_ratio", "memory_mb", "device", "threads"} <= report.keys()
    assert report["device"] == "cpu" and report["threads"] == 2
    assert report["uniform"]["forward_ratio"] > 0.3 and report["uniform"]["backward_ratio"] > 0.3
    if report["operator"].startswith("torch"):
        assert report["forward_ratio"] > 0.3 and report["backward_ratio"] > 0.1 and report["memory_mb"] < 900
    else:
        assert report["forward_ratio"] > 10 and report["backward_ratio"] > 7 and report["memory_mb"] < 100
