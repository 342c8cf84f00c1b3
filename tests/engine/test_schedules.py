"""Schedules by the epoch against torch's own, and what a plateau does in a run."""
import pytest
import torch
from lowrank_d2.engine.optimizer import build_scheduler
from lowrank_d2.errors import ConfigError
from torch import nn
from torch.optim import lr_scheduler

from tests.engine.test_trainer import run
from tests.engine.tiny import register, tiny_config

PERIOD, EPOCHS = 3, 12
TORCHS = {
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2, 2),
}


def adam():
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}, {"params": [nn.Parameter(torch.zeros(1))]}], 0.02)


def config(tmp_path, name, *words):
    return tiny_config(tmp_path, "any", "SOLVER.LR_SCHEDULER_NAME", name, "TEST.EVAL_PERIOD", PERIOD,
                       "SOLVER.COSINE.T_MAX", 5, "SOLVER.RESTARTS.T_0", 2, "SOLVER.RESTARTS.T_MULT", 2, *words)


@pytest.mark.parametrize("name", TORCHS)
def test_every_epoch_has_the_rate_of_torchs_scheduler(tmp_path, name):
    ours, theirs = adam(), adam()
    schedule, expected = build_scheduler(config(tmp_path, name), ours), TORCHS[name](theirs)
    for _ in range(EPOCHS):
        for _ in range(PERIOD):
            for group, other in zip(ours.param_groups, theirs.param_groups):
                assert group["lr"] == pytest.approx(other["lr"], abs=1e-12)
            ours.step()
            schedule.step()
        theirs.step()
        expected.step()


def test_a_schedule_resumes(tmp_path):
    cfg = config(tmp_path, "CosineAnnealingWarmRestarts")
    whole, half = adam(), adam()
    schedule, first = build_scheduler(cfg, whole), build_scheduler(cfg, half)
    for number in range(11):
        whole.step()
        schedule.step()
        if number < 6:
            half.step()
            first.step()
    resumed = adam()
    resumed.load_state_dict(half.state_dict())
    second = build_scheduler(cfg, resumed)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        resumed.step()
        second.step()
    assert [group["lr"] for group in resumed.param_groups] == [group["lr"] for group in whole.param_groups]


def test_a_plateau_halves_the_rate_at_the_third_evaluation_without_gain(tmp_path):
    optimizer = adam()
    schedule = build_scheduler(config(tmp_path, "ReduceLROnPlateau", "DATASETS.TEST", "('any',)"), optimizer)
    rates = []
    for ap in (20.0, 21.0, 21.0, 20.5, 21.001, 22.0):  # 21.001 is no gain: less than one part in ten thousand
        for _ in range(PERIOD):
            schedule.step()
        schedule.step(ap)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_evaluations_move_the_plateau_of_a_run_and_of_its_resume(tmp_path):
    dataset = register(tmp_path / "data")
    words = ("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau", "SOLVER.PLATEAU.PATIENCE", 0, "SOLVER.BASE_LR", 1e-6,
             "DATASETS.TEST", f"('{dataset}',)", "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 4)
    trainer = run(tiny_config(tmp_path / "out", dataset, *words))
    # Such a small rate gains nothing: every evaluation but the first halves it.
    assert trainer._rate() == pytest.approx(1e-6 / 8)
    longer = run(tiny_config(tmp_path / "out", dataset, *words, "SOLVER.MAX_ITER", 10), resume=True)
    assert longer._rate() == pytest.approx(1e-6 / 16)


@pytest.mark.parametrize("words, part", [
    (("TEST.EVAL_PERIOD", 0), "TEST.EVAL_PERIOD is 0"),
    (("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau"), "DATASETS.TEST is empty"),
])
def test_a_schedule_that_cannot_work_says_so(tmp_path, words, part):
    with pytest.raises(ConfigError, match=part):
        build_scheduler(config(tmp_path, "CosineAnnealingLR", *words), adam())
