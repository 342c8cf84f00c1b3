"""Parameter groups, clipping and schedules."""
import pytest
import torch
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.optimizer import build_optimizer, build_scheduler, clip_gradients, parameter_groups
from lowrank_d2.errors import ConfigError
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1), "norm": nn.BatchNorm2d(1)})
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(2))
        self.linear, self.norm, self.group = nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)
        self.embedding = nn.Embedding(3, 2)
        self.level_embed = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = self.linear


def rates(*words):
    cfg = load_config([], ["SOLVER.BASE_LR", "1.0", "SOLVER.WEIGHT_DECAY", "0.05", *words])
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(cfg, model)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rules_of_the_original():
    assert rates() == {
        "backbone.conv.weight": (0.1, 0.05), "backbone.conv.bias": (0.1, 0.05),
        "backbone.norm.weight": (0.1, 0.0), "backbone.norm.bias": (0.1, 0.0),
        "backbone.relative_position_bias_table": (0.1, 0.0),
        "linear.weight": (1.0, 0.05), "linear.bias": (1.0, 0.05), "norm.weight": (1.0, 0.0), "norm.bias": (1.0, 0.0),
        "group.weight": (1.0, 0.0), "group.bias": (1.0, 0.0), "embedding.weight": (1.0, 0.0), "level_embed": (1.0, 0.05),
    }


def test_keys_change_the_rules():
    found = rates("SOLVER.WEIGHT_DECAY_NORM", "0.01", "SOLVER.WEIGHT_DECAY_EMBED", "0.02", "SOLVER.BACKBONE_MULTIPLIER", "0.5",
                  "SOLVER.WEIGHT_DECAY_BIAS", "0.03", "SOLVER.BIAS_LR_FACTOR", "2.0")
    assert found["norm.weight"] == (1.0, 0.01) and found["embedding.weight"] == (1.0, 0.02)
    assert found["linear.bias"] == (2.0, 0.03) and found["backbone.conv.bias"] == (1.0, 0.03)
    assert found["backbone.conv.weight"] == (0.5, 0.05)


@pytest.mark.parametrize("name, kind", [("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_kinds(name, kind):
    optimizer = build_optimizer(load_config([], ["SOLVER.OPTIMIZER", name]), Model())
    assert type(optimizer) is kind
    if name == "ADAMW":
        assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8
    else:
        assert optimizer.defaults["momentum"] == 0.9


def test_nothing_to_train():
    with pytest.raises(ConfigError, match="MODEL.PEFT.TRAIN"):
        build_optimizer(load_config([]), nn.Linear(1, 1).requires_grad_(False))


@pytest.mark.parametrize("clip_type, expected", [
    ("full_model", [[0.3, 0.0], [0.4]]), ("norm", [[0.5, 0.0], [0.5]]), ("value", [[0.5, 0.0], [0.5]]),
])
def test_clipping(clip_type, expected):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    clip_gradients(parameters, clip_type, 0.5, 2.0)
    for parameter, wanted in zip(parameters, expected):
        torch.testing.assert_close(parameter.grad, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_clipping_is_part_of_step_and_comes_after_unscaling():
    words = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.0", "SOLVER.BASE_LR", "1.0", "SOLVER.WEIGHT_DECAY", "0.0"]
    words += ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    words += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"]
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = build_optimizer(load_config([], words), module)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(module(torch.tensor([[0.25]])).sum()).backward()
    scaler.step(optimizer)
    assert module.weight.item() == pytest.approx(-0.25)  # a scaled gradient would have been clipped to 0.5


def test_schedules():
    def curve(*words):
        cfg = load_config([], ["SOLVER.BASE_LR", "1.0", "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(4, 8)",
                               "SOLVER.WARMUP_ITERS", "3", "SOLVER.WARMUP_FACTOR", "0.1", *words])
        optimizer = build_optimizer(cfg, nn.Linear(1, 1))
        scheduler = build_scheduler(cfg, optimizer)
        values = []
        for _ in range(10):
            values.append(round(optimizer.param_groups[0]["lr"], 4))
            optimizer.step()
            scheduler.step()
        return values

    assert curve() == [0.1, 0.4, 0.7, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert curve("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")[3:6] == [0.7939, 0.6545, 0.5]
    poly = curve("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", "0")
    assert poly == [round((1 - step / 10) ** 0.9, 4) for step in range(10)]
    with pytest.raises(ConfigError, match="LR_SCHEDULER_NAME"):
        curve("SOLVER.LR_SCHEDULER_NAME", "Linear")


def test_a_model_may_name_what_does_not_decay():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(2))
            self.layer = nn.Linear(2, 2)

        def no_weight_decay(self):
            return {"table", "layer.bias"}

    cfg, model = load_config([], []), Named()
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(cfg, model)}
    assert [id(p) for p in groups[0.0]] == [id(model.table), id(model.layer.bias)]
    assert [id(p) for p in groups[cfg.SOLVER.WEIGHT_DECAY]] == [id(model.layer.weight)]


def test_a_model_may_name_rates_of_its_own():
    class Choosy(Model):
        def learning_rates(self):
            return {"backbone.conv": 0.5, "level_embed": 0.2, "norm": 0.0}

    cfg = load_config([], ["SOLVER.BASE_LR", "1.0"])
    model = Choosy()
    found = {id(p): group["lr"] for group in parameter_groups(cfg, model) for p in group["params"]}
    assert found[id(model.backbone["conv"].weight)] == 0.5 * cfg.SOLVER.BACKBONE_MULTIPLIER
    assert found[id(model.level_embed)] == 0.2 and found[id(model.norm.weight)] == 0.0
    assert found[id(model.backbone["norm"].weight)] == cfg.SOLVER.BACKBONE_MULTIPLIER and found[id(model.group.weight)] == 1.0


def test_adam_takes_its_betas_and_eps():
    cfg = load_config([], ["SOLVER.BETAS", "[0.9, 0.98]", "SOLVER.EPS", "1e-6"])
    (group,) = build_optimizer(cfg, nn.Linear(2, 2, bias=False)).param_groups
    assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6
