import pytest
import torch
from torch import nn

import detectron2
from detectron2.config import get_cfg
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import _expand_param_groups, maybe_add_gradient_clipping, reduce_param_groups

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.same = self.linear
        self.frozen = nn.Linear(2, 2)
        self.frozen.weight.requires_grad = False
        self.free = nn.Parameter(torch.zeros(2))


@pytest.fixture
def model():
    return Model()


def by_name(model, groups):
    """{parameter name: its hyperparameters}; fails if a parameter is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    result = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in result
            result[names[id(parameter)]] = {key: value for key, value in group.items() if key != "params"}
    return result


TRAINABLE = {
    "conv.weight", "conv.bias", "bn.weight", "bn.bias", "ln.weight", "ln.bias", "linear.weight", "linear.bias",
    "frozen.bias", "free",
}  # fmt: skip


def test_frozen_and_shared_parameters(model):
    groups = get_default_optimizer_params(model)
    assert len(groups) == 1
    assert set(by_name(model, groups)) == TRAINABLE


def test_norm_and_bias(model):
    groups = get_default_optimizer_params(
        model, base_lr=0.1, weight_decay=0.01, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.5
    )
    options = by_name(model, groups)
    for name in ("conv.weight", "linear.weight", "free"):
        assert options[name] == {"lr": 0.1, "weight_decay": 0.01}
    for name in ("bn.weight", "ln.weight"):
        assert options[name] == {"lr": 0.1, "weight_decay": 0.0}
    for name in ("conv.bias", "bn.bias", "ln.bias", "linear.bias", "frozen.bias"):
        assert options[name] == {"lr": 0.2, "weight_decay": 0.5}
    assert len(groups) == 3


def test_factors_and_overrides(model):
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 10.0 if name.startswith("linear") else 1.0,
        overrides={"weight": {"lr": 7.0}, "free": {"momentum": 0.3}},
    )
    options = by_name(model, groups)
    assert options["linear.weight"] == options["conv.weight"] == {"lr": 7.0}
    # a shared module is known by the name found first
    assert options["linear.bias"]["lr"] == 10.0
    assert options["conv.bias"] == {"lr": 1.0}
    assert options["free"] == {"lr": 1.0, "momentum": 0.3}


@mended
def test_factors_see_the_name_of_a_parameter_of_the_model_itself(model):
    names = []
    get_default_optimizer_params(model, base_lr=1.0, lr_factor_func=lambda name: names.append(name) or 1.0)
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 2.0},
        {"overrides": {"bias": {"lr": 1}}, "bias_lr_factor": 2.0, "base_lr": 1.0},
        {"overrides": {"bias": {"lr": 1}}, "weight_decay_bias": 2.0},
    ],
)
def test_contradictions(model, arguments):
    with pytest.raises(ValueError):
        get_default_optimizer_params(model, **arguments)


@mended
def test_overrides_stay_the_callers(model):
    overrides = {}
    get_default_optimizer_params(model, base_lr=1.0, bias_lr_factor=2.0, overrides=overrides)
    assert overrides == {}


def test_groups_expand_and_reduce():
    groups = [
        {"params": ["a", "b", "c"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["b"], "lr": 2.0},
        {"params": ["d"], "lr": 1.0, "weight_decay": 3.0},
    ]
    assert _expand_param_groups(groups) == [
        {"params": ["a"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["b"], "lr": 2.0, "weight_decay": 3.0},
        {"params": ["c"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["d"], "lr": 1.0, "weight_decay": 3.0},
    ]
    assert reduce_param_groups(groups) == [
        {"lr": 1.0, "weight_decay": 3.0, "params": ["a", "c", "d"]},
        {"lr": 2.0, "weight_decay": 3.0, "params": ["b"]},
    ]


def test_optimizer_of_the_config(model):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = 0.5, 0.25, 0.75
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["foreach"] is True
    options = by_name(model, optimizer.param_groups)
    assert set(options) == TRAINABLE
    assert options["conv.bias"]["weight_decay"] == 0.25
    assert options["bn.bias"]["weight_decay"] == 0.0
    assert {group["momentum"] for group in optimizer.param_groups} == {0.75}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize(
    "kind, expected", [("value", [1.0, 1.0, 1.0, 0.5]), ("norm", [0.57735, 0.57735, 0.57735, 0.5])]
)
def test_clipping_of_every_parameter(kind, expected):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == "SGDWithGradientClip"
    assert isinstance(optimizer, torch.optim.SGD)
    model.weight.grad = torch.full((1, 3), 3.0)
    model.bias.grad = torch.full((1,), 0.5)
    optimizer.step()
    assert (-torch.cat([model.weight[0], model.bias])).tolist() == pytest.approx(expected, abs=1e-5)


def test_clipping_an_existing_optimizer_keeps_its_state():
    cfg = get_cfg()
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer
    assert type(optimizer) is torch.optim.Adam
    parameter.grad = torch.ones(1)
    optimizer.step()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer
    assert type(optimizer).__name__ == "AdamWithGradientClip"
    assert len(optimizer.state) == 1


def test_unknown_clip_type(model):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="full_model"):
        build_optimizer(cfg, model)
