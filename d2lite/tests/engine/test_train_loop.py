import json

import pytest
import torch
from torch import nn

import detectron2
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.utils.events import get_event_storage

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


class Model(nn.Module):
    """Two losses whose gradient for `weight` is 3 x the batch's mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss_a": self.weight.sum() * x.mean(), "loss_b": 2 * self.weight.sum() * x.mean()}


def batches(value=1.0):
    while True:
        yield torch.full((2,), value)


def trainer(model=None, lr=0.1, **options):
    model = model or Model()
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr), **options)


class Recorder(HookBase):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def note(self, what):
        self.log.append(f"{self.name}.{what}")

    def before_train(self):
        self.note("before_train")

    def after_train(self):
        self.note(f"after_train {self.trainer.iter} {self.trainer.storage.iter}")

    def before_step(self):
        self.note(f"before_step {self.trainer.iter} {self.trainer.storage.iter}")

    def after_backward(self):
        self.note(f"after_backward {self.trainer.model.weight.item():.1f} {self.trainer.storage.latest()}")

    def after_step(self):
        self.note(f"after_step {self.trainer.model.weight.item():.1f}")


def test_order_of_hooks():
    log = []
    run = trainer()
    run.register_hooks([Recorder("A", log), None, Recorder("B", log)])
    run.train(3, 4)
    assert log == [
        "A.before_train", "B.before_train",
        "A.before_step 3 3", "B.before_step 3 3",
        "A.after_backward 1.0 {}", "B.after_backward 1.0 {}",  # gradients are there, metrics and the step are not
        "A.after_step 0.7", "B.after_step 0.7",
        "A.after_train 4 4", "B.after_train 4 4",
    ]  # fmt: skip
    assert (run.start_iter, run.max_iter, run.iter) == (3, 4, 4)
    with pytest.raises(AssertionError):
        run.register_hooks(["no hook"])


def test_hooks_see_the_end_of_a_broken_training():
    log = []

    class Breaks(HookBase):
        def after_step(self):
            if self.trainer.iter == 1:
                raise KeyError("broken")

    run = trainer()
    run.register_hooks([Recorder("A", log), Breaks()])
    with pytest.raises(KeyError, match="broken"):
        run.train(0, 5)
    assert log[-1] == "A.after_train 1 1"


@mended
def test_a_finished_training_does_nothing():
    log = []
    run = trainer()
    run.register_hooks([Recorder("A", log)])
    run.train(5, 5)
    assert log == [] and run.iter == 5 and run.model.weight.item() == 1


def test_stored_scalars():
    run = trainer()
    run.train(0, 3)
    latest = run.storage.latest()
    assert set(latest) == {"total_loss", "loss_a", "loss_b", "data_time", "rank_data_time"}
    # weights 1, 0.7, 0.4
    assert [value for value, _ in run.storage.history("total_loss").values()] == pytest.approx([3, 2.1, 1.2])
    assert [value for value, _ in run.storage.history("loss_b").values()] == pytest.approx([2, 1.4, 0.8])
    assert latest["total_loss"][1] == 2


def test_a_single_loss_is_the_total_only():
    class Single(Model):
        def forward(self, x):
            return self.weight.sum()

    run = trainer(Single())
    run.train(0, 1)
    assert set(run.storage.latest()) == {"total_loss", "data_time", "rank_data_time"}


def test_gather_period():
    run = trainer(gather_metric_period=2)
    run.train(0, 5)
    assert [iteration for _, iteration in run.storage.history("total_loss").values()] == [1, 3]


def test_a_loss_that_is_not_finite_leaves_the_weights():
    class Diverges(Model):
        def forward(self, x):
            loss = self.weight.sum()
            return {"loss": loss * float("nan") if get_event_storage().iter == 1 else loss}

    run = trainer(Diverges())
    with pytest.raises(FloatingPointError):
        run.train(0, 5)
    assert run.model.weight.item() == pytest.approx(0.9)
    assert run.iter == 1


def test_models_must_be_in_training_mode():
    run = trainer()
    run.model.eval()
    with pytest.raises(AssertionError):
        run.train(0, 1)


@pytest.mark.parametrize("before", [False, True])
def test_gradients_are_cleared(before):
    run = trainer(zero_grad_before_forward=before)
    run.train(0, 2)
    assert run.model.weight.item() == pytest.approx(1 - 0.1 * 3 * 2)


def test_another_data_loader():
    run = trainer()
    run.train(0, 1)
    run.reset_data_loader(lambda: batches(2.0))
    run.train(1, 2)
    assert run.model.weight.item() == pytest.approx(1 - 0.3 - 0.6)


class TestAsynchronousMetrics:
    def test_none_is_lost(self):
        run = trainer(async_write_metrics=True)
        run.train(0, 20)
        assert [iteration for _, iteration in run.storage.history("total_loss").values()] == list(range(20))

    @mended
    def test_errors_arrive(self):
        class Diverges(Model):
            def forward(self, x):
                return {"loss": self.weight.sum() * float("inf")}

        with pytest.raises(FloatingPointError):
            trainer(Diverges(), async_write_metrics=True).train(0, 1)


class TestState:
    class Counter(HookBase):
        count = 0

        def after_step(self):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    def test_content(self):
        run = trainer()
        run.register_hooks([self.Counter(), Recorder("A", [])])
        run.train(0, 3)
        state = run.state_dict()
        assert set(state) == {"iteration", "hooks", "optimizer"}
        assert state["iteration"] == 3
        assert state["hooks"] == {"TestState.Counter": {"count": 3}}

    def test_round_trip(self):
        first = trainer(lr=0.5)
        first.register_hooks([self.Counter()])
        first.train(0, 3)
        second, hook = trainer(lr=9.0), self.Counter()
        second.register_hooks([Recorder("A", []), hook])
        second.load_state_dict(first.state_dict())
        assert second.iter == 3
        assert hook.count == 3
        assert second.optimizer.param_groups[0]["lr"] == 0.5

    def test_states_of_absent_hooks_are_ignored(self):
        first = trainer()
        first.register_hooks([self.Counter()])
        first.train(0, 1)
        second = trainer()
        second.load_state_dict(first.state_dict())
        assert second.iter == 1


def test_base_class_has_no_step():
    class Empty(TrainerBase):
        pass

    with pytest.raises(NotImplementedError):
        Empty().train(0, 1)


@mended
class TestMixedPrecisionOnTheCPU:
    class Seen(Model):
        def forward(self, x):
            self.dtype = (x[:, None] @ self.weight[None]).dtype
            return super().forward(x)

    def run(self, precision, **options):
        model = self.Seen()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run = AMPTrainer(model, batches(), optimizer, precision=precision, **options)
        run.train(0, 2)
        return run

    @pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
    def test_forward_runs_in_the_precision_and_weights_do_not(self, precision):
        run = self.run(precision)
        assert run.model.dtype == precision
        assert run.model.weight.dtype == torch.float32
        assert run.model.weight.item() == pytest.approx(0.4)

    def test_only_float16_is_scaled(self):
        assert self.run(torch.float16).grad_scaler.is_enabled()
        assert not self.run(torch.bfloat16).grad_scaler.is_enabled()

    def test_scale_is_logged_and_saved(self):
        run = self.run(torch.float16, log_grad_scaler=True)
        assert run.storage.latest()["[metric]grad_scaler"][0] == 65536
        state = run.state_dict()
        assert state["grad_scaler"]["scale"] == 65536
        json.dumps(state["grad_scaler"])
        self.run(torch.float16).load_state_dict(state)
        del state["grad_scaler"]
        self.run(torch.float16).load_state_dict(state)

    def test_asynchronous_metrics(self):
        run = self.run(torch.bfloat16, async_write_metrics=True)
        assert [iteration for _, iteration in run.storage.history("total_loss").values()] == [0, 1]
