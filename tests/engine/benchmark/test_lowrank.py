import sys

import pytest
import torch
from torch import nn

from lowrank_d2.engine.benchmark import lowrank
from lowrank_d2.errors import ConfigError

pytest.importorskip("peft")


@pytest.mark.slow
def test_the_report_has_its_keys_and_sensible_numbers():
    report = lowrank.run(threads=1, widths=(256,), tokens=(1250,), models=(), seconds=0.5)
    assert [row["method"] for row in report["cases"]] == ["lora", "dora", "adalora", "loha", "lokr"]
    for row in report["cases"]:
        assert {"method", "relative_to_frozen", "peft_relative", "saved_mb", "peft_saved_mb"} <= row.keys()
        # Below 1 where oneDNN is faster than the frozen layer's MKL.
        assert 0.3 < row["relative_to_frozen"] < 4 and 1 < row["peft_relative"] < 8
        assert 0 <= row["saved_mb"] <= row["peft_saved_mb"] and (row["width"], row["tokens"]) == (256, 1250)
    assert report["frozen_ms"].keys() == {"256 x 1250"} and report["models"] == []


@pytest.mark.parametrize("method", lowrank.METHODS)
def test_both_sides_of_a_case_are_the_same_function_with_trained_values(method):
    x = torch.randn(4, 64)
    torch.manual_seed(0)
    ours = lowrank._with_values(lowrank.inject(nn.Sequential(nn.Linear(64, 64)), [lowrank.METHODS[method](["0"])]))
    torch.manual_seed(0)
    theirs = lowrank._by_peft(nn.Sequential(nn.Linear(64, 64)), method, ["0"])
    there = {name.replace(".default", "").replace(".weight", ""): p for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                there[name].copy_(parameter)
                assert parameter.any()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", lowrank.MODELS)
def test_the_models_have_their_targets(name):
    build, targets, shape = lowrank.MODELS[name]
    with torch.device("meta"):
        net = lowrank.inject(build(), [lowrank.METHODS["lora"](targets)])
    assert sum("lora_A" in key for key in net.state_dict()) == {"encoder": 4, "vit": 6}[name] and len(shape) == 3


def test_what_is_kept_is_counted_without_input_and_parameters():
    linear, x = nn.Linear(8, 8), torch.randn(10, 8, requires_grad=True)
    assert lowrank._kept_bytes(linear, x) == 0
    assert lowrank._kept_bytes(nn.Sequential(linear, nn.Sigmoid()), x) == 10 * 8 * 4
    deep = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert lowrank._kept_bytes(deep, x) == 10 * 8 * 4


def test_without_peft_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="which is not installed: pip install peft"):
        lowrank.run()
