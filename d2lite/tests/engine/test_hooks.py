import json
import os

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

import detectron2
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import EventWriter, JSONWriter

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return {"loss": self.norm(x).square().mean()}


def batches(value=1.0):
    while True:
        yield torch.tensor([[value], [value + 2]])


@pytest.fixture
def run():
    model = Model()
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1))


def train(run, hook_list, iterations, start=0):
    run.register_hooks(hook_list)
    run.train(start, iterations)
    return run.storage


def test_callbacks(run):
    calls = []
    names = ("before_train", "before_step", "after_step", "after_train")
    callbacks = {name: lambda trainer, name=name: calls.append((name, trainer.iter)) for name in names}
    train(run, [hooks.CallbackHook(**callbacks), hooks.CallbackHook()], 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_timer_leaves_the_first_iterations_out(run):
    storage = train(run, [hooks.IterationTimer(warmup_iter=3)], 10)
    assert [iteration for _, iteration in storage.history("time").values()] == list(range(2, 10))
    assert all(seconds > 0 for seconds, _ in storage.history("time").values())


class TestPeriodicWriter:
    class Writer(EventWriter):
        def __init__(self, run, log):
            self.run, self.log = run, log

        def write(self):
            self.log.append(self.run.iter)

        def close(self):
            self.log.append("closed")

    def test_when_it_writes(self, run):
        log = []
        train(run, [hooks.PeriodicWriter([self.Writer(run, log)], period=4)], 10)
        assert log == [3, 7, 9, 10, "closed"]

    def test_order_of_lines_with_an_evaluation(self, run, tmp_path):
        path = tmp_path / "metrics.json"
        evaluation = hooks.EvalHook(25, lambda: {"bbox": {"AP": 1.0}})
        train(run, [evaluation, hooks.PeriodicWriter([JSONWriter(str(path))])], 50)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["iteration"] for line in lines] == [19, 39, 24, 49, 50]
        assert [line["iteration"] for line in lines if "bbox/AP" in line] == [24, 50]


def test_periodic_checkpoints(run, tmp_path):
    checkpointer = Checkpointer(run.model, str(tmp_path), trainer=run)
    train(run, [hooks.PeriodicCheckpointer(checkpointer, 4)], 10)
    files = sorted(name for name in os.listdir(tmp_path) if name.endswith(".pth"))
    assert files == ["model_0000003.pth", "model_0000007.pth", "model_final.pth"]
    assert torch.load(tmp_path / "model_0000007.pth")["iteration"] == 7


class TestBestCheckpointer:
    def saved(self, run, tmp_path, values, mode="max", iterations=40):
        values, saved = iter(values), []
        checkpointer = Checkpointer(run.model, str(tmp_path))
        checkpointer.save = lambda name, **extra: saved.append((name, extra))
        evaluation = hooks.EvalHook(10, lambda: {"m": next(values)})
        train(run, [evaluation, hooks.BestCheckpointer(10, checkpointer, "m", mode)], iterations)
        return saved

    @pytest.mark.parametrize(
        "mode, values, iterations",
        [
            ("max", [0.3, 0.4, 0.35, 0.5], [9, 19, 40]),
            ("min", [1.0, 0.8, 0.9, 0.8], [9, 19]),
            ("max", [float("nan"), 0.1, 0.2, 0.2], [19, 29]),
            pytest.param("max", [0.1, float("inf"), 0.2, 0.1], [9, 29], marks=mended),
        ],
    )
    def test_only_improvements_are_saved(self, run, tmp_path, mode, values, iterations):
        expected = [("model_best", {"iteration": iteration}) for iteration in iterations]
        assert self.saved(run, tmp_path, values, mode) == expected

    def test_without_the_metric(self, run, tmp_path):
        checkpointer = Checkpointer(run.model, str(tmp_path))
        train(run, [hooks.BestCheckpointer(2, checkpointer, "missing")], 4)
        assert os.listdir(tmp_path) == []


class TestLRScheduler:
    def test_rate_is_stored_before_the_step(self, run):
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 2)
        storage = train(run, [hooks.LRScheduler(scheduler=scheduler)], 4)
        assert [value for value, _ in storage.history("lr").values()] == pytest.approx([0.1, 0.1, 0.01, 0.01])
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
        assert storage.smoothing_hints()["lr"] is False

    def test_param_schedulers_span_the_training(self, run):
        storage = train(run, [hooks.LRScheduler(scheduler=CosineParamScheduler(1, 0))], 4)
        expected = [0.1, 0.0853553, 0.05, 0.0146447]
        assert [value for value, _ in storage.history("lr").values()] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        "groups, best",
        [([(1, 0.1), (3, 0.2), (3, 0.3)], 1), ([(1, 0.1), (1, 0.2), (1, 0.2)], 1), ([(1, 0.1), (1, 0.2)], 0)],
    )
    def test_which_group_is_stored(self, groups, best):
        groups = [{"params": [nn.Parameter(torch.ones(1)) for _ in range(size)], "lr": lr} for size, lr in groups]
        optimizer = torch.optim.SGD(groups, lr=1)
        assert hooks.LRScheduler.get_best_param_group_id(optimizer) == best

    def test_resuming(self, run, tmp_path):
        def hook(trainer):
            return hooks.LRScheduler(scheduler=torch.optim.lr_scheduler.StepLR(trainer.optimizer, 3))

        train(run, [hook(run)], 4)
        other = SimpleTrainer(run.model, batches(), torch.optim.SGD(run.model.parameters(), 9.0))
        resumed = hook(other)
        other.register_hooks([resumed])
        other.load_state_dict(run.state_dict())
        assert resumed.scheduler.last_epoch == 4
        assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


class TestEvalHook:
    @pytest.mark.parametrize("iterations, period, expected", [(30, 15, [14, 30]), (31, 15, [14, 29, 31]), (9, 0, [9])])
    def test_when_it_evaluates(self, run, iterations, period, expected):
        seen = []
        train(run, [hooks.EvalHook(period, lambda: seen.append(run.iter))], iterations)
        assert seen == expected

    def test_not_after_training(self, run):
        seen = []
        train(run, [hooks.EvalHook(2, lambda: seen.append(run.iter), eval_after_train=False)], 6)
        assert seen == [1, 3]

    def test_results_are_stored_flat_and_unsmoothed(self, run):
        storage = train(run, [hooks.EvalHook(0, lambda: {"bbox": {"AP": 1, "AP50": 2.5}, "n": "3"})], 2)
        assert {name: storage.latest()[name] for name in ("bbox/AP", "bbox/AP50", "n")} == {
            "bbox/AP": (1.0, 2),
            "bbox/AP50": (2.5, 2),
            "n": (3.0, 2),
        }
        assert storage.smoothing_hints()["bbox/AP"] is False

    def test_results_must_be_numbers(self, run):
        with pytest.raises(ValueError, match="text"):
            train(run, [hooks.EvalHook(0, lambda: {"a": "text"})], 1)

    def test_no_evaluation_after_a_broken_training(self, run):
        def fail(trainer):
            raise KeyError

        seen = []
        with pytest.raises(KeyError):
            train(run, [hooks.CallbackHook(after_step=fail), hooks.EvalHook(0, lambda: seen.append(1))], 5)
        assert seen == []


def test_precise_batch_norm(run):
    hook = hooks.PreciseBN(2, run.model, batches(10.0), num_iter=3)
    means = []
    record = hooks.CallbackHook(after_step=lambda trainer: means.append(run.model.norm.running_mean.item()))
    train(run, [hook, record], 5)
    # the running mean of training is that of 1 and 3; after iterations 2, 4 and 5 it is that of 10 and 12
    assert means[0] == pytest.approx(0.2)
    assert means[1] == means[3] == means[4] == pytest.approx(11)
    assert means[2] == pytest.approx(0.9 * 11 + 0.1 * 2)


@mended
def test_precise_batch_norm_without_batch_norm(run):
    hook = hooks.PreciseBN(1, nn.Linear(1, 1), None, num_iter=3)
    train(run, [hook], 2)
    assert run.iter == 2
