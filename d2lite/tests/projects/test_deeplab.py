import pytest
import torch
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler


def test_keys():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    assert cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA == 1.0 and cfg.INPUT.CROP.SIZE == [0.9, 0.9]
    assert (cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING) == (0.9, 0.0)
    assert cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS == [6, 12, 18] and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54
    assert cfg.MODEL.RESNETS.RES5_MULTI_GRID == [1, 2, 4] and cfg.MODEL.RESNETS.STEM_TYPE == "deeplab"


def rates(**solver):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 10, 2, 0.5
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_polynomial_decay_after_the_warm_up():
    decay = [(1 - i / 10) ** 0.9 for i in range(10)]
    assert rates() == pytest.approx([0.5, 0.75 * decay[1], *decay[2:]])


def test_constant_ending_and_constant_warm_up():
    decay = [(1 - i / 10) ** 2 for i in range(10)]
    seen = rates(POLY_LR_POWER=2.0, POLY_LR_CONSTANT_ENDING=0.3, WARMUP_METHOD="constant")
    assert seen == pytest.approx([0.5, 0.5 * decay[1], *decay[2:5], 0.3, 0.3, 0.3, 0.3, 0.3])


def test_other_schedules_are_detectron2s():
    assert rates(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(5,)) == pytest.approx([0.5, 0.75] + [1] * 3 + [0.1] * 5)
