import logging

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn

import detectron2
from detectron2.config import get_cfg
from detectron2.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


def sgd(lr=1.0):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def curve(optimizer, scheduler, iterations):
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def config(**solver):
    cfg = get_cfg()
    defaults = {"MAX_ITER": 10, "STEPS": (4, 8), "WARMUP_ITERS": 3, "WARMUP_FACTOR": 0.1, "BASE_LR": 1.0}
    for key, value in {**defaults, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


MULTI_STEP = {"LR_SCHEDULER_NAME": "WarmupMultiStepLR"}
COSINE = {"LR_SCHEDULER_NAME": "WarmupCosineLR"}
FIXED_GAMMA = {"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR"}
RESCALED = {"RESCALE_INTERVAL": True}
CONSTANT = {"WARMUP_METHOD": "constant"}


@pytest.mark.parametrize(
    "solver, expected",
    [
        (MULTI_STEP, [0.1, 0.4, 0.7, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (MULTI_STEP | RESCALED, [0.1, 0.4, 0.7, 1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        (MULTI_STEP | CONSTANT, [0.1, 0.1, 0.1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (MULTI_STEP | {"WARMUP_ITERS": 0}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (MULTI_STEP | {"STEPS": ()}, [0.1, 0.4, 0.7, 1, 1, 1, 1, 1, 1, 1]),
        (MULTI_STEP | {"WARMUP_ITERS": 20}, [0.1, 0.091, 0.082, 0.073, 0.064, 0.055, 0.046, 0.037, 0.028, 0.019]),
        (COSINE, [0.1, 0.3313, 0.5626, 0.7939, 0.6545, 0.5, 0.3455, 0.2061, 0.0955, 0.0245]),
        (COSINE | RESCALED, [0.1, 0.4, 0.7, 1, 0.9505, 0.8117, 0.6113, 0.3887, 0.1883, 0.0495]),
        (COSINE | {"BASE_LR_END": 0.1}, [0.1, 0.3382, 0.5763, 0.8145, 0.6891, 0.55, 0.4109, 0.2855, 0.1859, 0.122]),
        (FIXED_GAMMA, [0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]),
    ],
)
def test_curves_of_the_config(solver, expected):
    optimizer = sgd()
    scheduler = build_lr_scheduler(config(**solver), optimizer)
    # the step after the last iteration is below its own test
    rates = curve(optimizer, scheduler, 9) + [optimizer.param_groups[0]["lr"]]
    assert rates == pytest.approx(expected, abs=6e-5)


@mended
def test_fixed_gamma_survives_the_step_after_the_last_iteration():
    optimizer = sgd()
    scheduler = build_lr_scheduler(config(**FIXED_GAMMA), optimizer)
    assert curve(optimizer, scheduler, 10)[-1] == optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_steps_beyond_the_end_are_ignored_with_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.getLogger("detectron2.solver.build"), "warning", lambda *text: warnings.append(text))
    optimizer = sgd()
    scheduler = build_lr_scheduler(config(STEPS=(4, 12)), optimizer)
    assert len(warnings) == 1
    assert curve(optimizer, scheduler, 10)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "solver", [{"LR_SCHEDULER_NAME": "Nope"}, {"WARMUP_METHOD": "burnin"}, {"LR_SCHEDULER_NAME": "cosine"}]
)
def test_unknown_names(solver):
    with pytest.raises(ValueError):
        build_lr_scheduler(config(**solver), sgd())


def test_multiplier_keeps_only_what_a_run_needs_to_go_on():
    optimizer = sgd(2.0)
    scheduler = LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=10)
    curve(optimizer, scheduler, 4)
    assert scheduler.state_dict() == {"base_lrs": [2.0], "last_epoch": 4}

    resumed = sgd(2.0)
    other = LRMultiplier(resumed, MultiStepParamScheduler([1, 0.5], milestones=[5], num_updates=10), max_iter=10)
    other.load_state_dict(scheduler.state_dict())
    resumed.step()
    other.step()
    assert resumed.param_groups[0]["lr"] == 1.0


def test_multiplier_refuses_functions():
    with pytest.raises(ValueError):
        LRMultiplier(sgd(), lambda share: 1.0, max_iter=10)


def test_warmup_ends_where_the_schedule_is():
    schedule = CosineParamScheduler(1, 0)
    running = WarmupParamScheduler(schedule, 0.1, 0.5)
    assert running(0.5 - 1e-5) == pytest.approx(schedule(0.5), abs=1e-3)
    rescaled = WarmupParamScheduler(schedule, 0.1, 0.5, rescale_interval=True)
    assert rescaled(0.5 - 1e-5) == pytest.approx(1.0, abs=1e-3)
    assert rescaled(0.75) == pytest.approx(schedule(0.5))
