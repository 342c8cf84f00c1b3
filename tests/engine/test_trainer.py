"""The loop: resume without a changed bit, accumulation, precision, what stops a run, and what is then on the disk."""
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from lowrank_d2.engine import hooks
from lowrank_d2.engine.interrupt import Interrupted
from lowrank_d2.errors import CheckpointError, ConfigError, OutputError, TrainingError

from tests.engine.tiny import TinyTrainer, losses_of, register, tiny_config


@pytest.fixture
def dataset(tmp_path):
    return register(tmp_path / "data")


def run(cfg, resume=False, *, stop_after=None, trainer_class=TinyTrainer):
    """Trains; `stop_after` raises in the middle of the loop after so many steps, as a crash would."""
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume)
    if stop_after is not None:
        trainer.register_hooks([_Crash(stop_after)])
    trainer.train()
    return trainer


class _Crash(hooks.HookBase):
    def __init__(self, after):
        self._after = after

    def after_step(self):
        if self.trainer.iter + 1 == self._after:
            raise ZeroDivisionError


def test_a_run_writes_what_it_promises(tmp_path, dataset):
    trainer = run(tiny_config(tmp_path / "out", dataset, "DATASETS.TEST", f"('{dataset}',)", "TEST.EVAL_PERIOD", "4"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"metrics.json", "last_checkpoint", "model_final.pth", "delta_best.safetensors", "delta_final.safetensors",
            "inference"} <= written
    assert len(losses_of(tmp_path / "out")) == 8
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [3, 7]
    assert lines[0]["total_loss"] == pytest.approx(lines[0]["loss_box"] + lines[0]["loss_query"], abs=1e-6)
    assert trainer.results["bbox"]["AP"] == pytest.approx(lines[7]["bbox/AP"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grouping", [True, False])
def test_resume_changes_no_bit(tmp_path, dataset, workers, grouping):
    words = ("SOLVER.CHECKPOINT_PERIOD", "3", "DATALOADER.NUM_WORKERS", workers, "DATALOADER.ASPECT_RATIO_GROUPING", grouping,
             "SOLVER.ACCUMULATE", "2", "DATASETS.TEST", f"('{dataset}',)", "TEST.EVAL_PERIOD", "4")
    whole = run(tiny_config(tmp_path / "whole", dataset, *words))
    with pytest.raises(ZeroDivisionError):
        run(tiny_config(tmp_path / "cut", dataset, *words), stop_after=5)
    resumed = run(tiny_config(tmp_path / "cut", dataset, *words), resume=True)
    assert resumed.start_iter == 3
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_losses_do_not_depend_on_the_worker_count(tmp_path, dataset):
    for workers in (0, 1, 3):
        run(tiny_config(tmp_path / str(workers), dataset, "DATALOADER.NUM_WORKERS", workers))
    assert losses_of(tmp_path / "0") == losses_of(tmp_path / "1") == losses_of(tmp_path / "3")


def test_evaluation_does_not_change_training(tmp_path, dataset):
    run(tiny_config(tmp_path / "without", dataset))
    run(tiny_config(tmp_path / "with", dataset, "DATASETS.TEST", f"('{dataset}',)", "TEST.EVAL_PERIOD", "3",
                    "TEST.VALIDATION_LOSS", "True"))
    assert losses_of(tmp_path / "with") == losses_of(tmp_path / "without")
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.json").read_text().splitlines()]
    values = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(values) == 3 and all(0 < value < 2 for value in values) and len(set(values)) == 3


def test_a_seed_of_minus_one_is_drawn_and_resumed(tmp_path, dataset):
    words = ("SEED", "-1", "SOLVER.CHECKPOINT_PERIOD", "3")
    first = run(tiny_config(tmp_path / "a", dataset, *words))
    second = run(tiny_config(tmp_path / "b", dataset, *words))
    assert first.cfg.SEED != second.cfg.SEED and min(first.cfg.SEED, second.cfg.SEED) >= 0
    with pytest.raises(ZeroDivisionError):
        run(tiny_config(tmp_path / "c", dataset, *words), stop_after=3 + 1)
    resumed = run(tiny_config(tmp_path / "c", dataset, *words), resume=True)
    assert len(losses_of(tmp_path / "c")) == 8 and resumed.cfg.SEED >= 0


def test_a_finished_run_resumes_quietly(tmp_path, dataset):
    words = ("DATASETS.TEST", f"('{dataset}',)")
    first = run(tiny_config(tmp_path / "out", dataset, *words))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    again = run(tiny_config(tmp_path / "out", dataset, *words), resume=True)
    assert again.results["bbox"] == pytest.approx(dict(first.results["bbox"]), nan_ok=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    longer = run(tiny_config(tmp_path / "out", dataset, *words, "SOLVER.MAX_ITER", "9"), resume=True)
    assert longer.iter == 9 and len(losses_of(tmp_path / "out")) == 9


def test_accumulation_averages_gradients(tmp_path, dataset):
    trainer = TinyTrainer(tiny_config(tmp_path, dataset, "SOLVER.ACCUMULATE", "3"))
    batches = iter(trainer.build_train_loader(trainer.cfg))
    seen = [next(batches) for _ in range(3)]
    trainer.model.train()
    state = torch.get_rng_state()
    expected = torch.zeros_like(trainer.model.query.weight)
    for batch in seen:
        expected += torch.autograd.grad(sum(trainer.model(batch).values()), trainer.model.query.weight)[0] / 3
    trainer.storage = hooks_storage()
    trainer._batches, trainer.iter, trainer.start_iter = iter(seen), 1, 0
    torch.set_rng_state(state)
    trainer.run_step()
    torch.testing.assert_close(trainer.model.query.weight.grad, expected)


def hooks_storage():
    from detectron2.utils.events import EventStorage

    return EventStorage(0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_on_the_cpu(tmp_path, dataset, dtype):
    words = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.CHECKPOINT_PERIOD", "3")
    whole = run(tiny_config(tmp_path / "whole", dataset, *words))
    assert whole.scaler.is_enabled() == (dtype == "float16")
    with pytest.raises(ZeroDivisionError):
        run(tiny_config(tmp_path / "cut", dataset, *words), stop_after=4)
    run(tiny_config(tmp_path / "cut", dataset, *words), resume=True)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")


class _Poisoned(TinyTrainer):
    """The loss of the fourth step is NaN."""

    def _forward(self, model, batch):
        losses = super()._forward(model, batch)
        return {**losses, "loss_box": losses["loss_box"] * math.nan} if self.iter == 3 else losses


def test_a_nan_loss_stops_with_the_files_and_saves_the_state_before(tmp_path, dataset):
    with pytest.raises(TrainingError) as caught:
        run(tiny_config(tmp_path / "out", dataset), trainer_class=_Poisoned)
    text = str(caught.value)
    assert "Iteration 3" in text and "loss_box = nan" in text and ".png" in text and "0.001" in text
    assert caught.value.exit_code == 3
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
    run(tiny_config(tmp_path / "whole", dataset))
    run(tiny_config(tmp_path / "out", dataset), resume=True)
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "whole")


@pytest.mark.parametrize("words", [
    "matching costs are not numbers; look for nan in the predictions",
    "matrix contains invalid numeric entries",  # scipy's, for minus infinity
    "cost matrix is infeasible",
])
def test_a_matcher_that_meets_nan_is_explained_too(tmp_path, dataset, words):
    class Matching(TinyTrainer):
        def _forward(self, model, batch):
            if self.iter == 2:
                raise ValueError(words)
            return super()._forward(model, batch)

    with pytest.raises(TrainingError, match=f"Iteration 2: {words}.*0.001, on the images .*png"):
        run(tiny_config(tmp_path / "out", dataset), trainer_class=Matching)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"


def test_weights_that_are_not_finite_are_not_saved(tmp_path, dataset):
    trainer = TinyTrainer(tiny_config(tmp_path, dataset))
    trainer.model.query.weight.data[0, 0] = math.inf
    with pytest.raises(TrainingError, match="query.weight"):
        trainer.save_checkpoint("model_0000000")
    assert not list(tmp_path.glob("*.pth"))


class _Signal(hooks.HookBase):
    def __init__(self, number, at):
        self._number, self._at = number, at

    def before_step(self):
        if self.trainer.iter == self._at:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, dataset, number, code):
    trainer = TinyTrainer(tiny_config(tmp_path / "out", dataset, "DATALOADER.NUM_WORKERS", "2"))
    trainer.register_hooks([_Signal(number, 4)])
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.exit_code == code and signal.getsignal(number) == before
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000004.pth"
    run(tiny_config(tmp_path / "whole", dataset))
    run(tiny_config(tmp_path / "out", dataset), resume=True)
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "whole")


def test_an_evaluation_cut_off_by_a_signal_is_made_up_for(tmp_path, dataset):
    words = ("DATASETS.TEST", f"('{dataset}',)")
    cfg = tiny_config(tmp_path / "out", dataset, *words)

    class Cut(TinyTrainer):
        @classmethod
        def build_evaluator(cls, cfg, name):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(cfg, trainer_class=Cut)
    assert not (tmp_path / "out" / "delta_best.safetensors").exists()
    resumed = run(cfg, resume=True)
    assert "AP" in resumed.results["bbox"]
    before = (tmp_path / "out" / "model_final.pth").stat().st_mtime_ns
    assert run(cfg, resume=True).results["bbox"] == pytest.approx(dict(resumed.results["bbox"]), nan_ok=True)
    assert (tmp_path / "out" / "model_final.pth").stat().st_mtime_ns == before


def test_early_stop_ends_the_run_and_stays_ended(tmp_path, dataset, monkeypatch):
    scores = iter([10.0, 20.0, 20.5, 19.0, 30.0])
    monkeypatch.setattr(TinyTrainer, "test", classmethod(lambda *args: {"segm": {"AP": next(scores)}}))
    cfg = tiny_config(tmp_path / "out", dataset, "DATASETS.TEST", f"('{dataset}',)", "TEST.EVAL_PERIOD", "1",
                      "TEST.EARLY_STOP.PATIENCE", "2", "TEST.EARLY_STOP.MIN_DELTA", "1.0")
    trainer = run(cfg)
    assert trainer.iter == 4 and trainer.finished
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    from lowrank_d2.peft import read_header

    assert read_header(tmp_path / "out" / "delta_best.safetensors").extra["ap"] == 20.5
    assert run(cfg, resume=True).start_iter == 4 and len(losses_of(tmp_path / "out")) == 4


class _DyingMapper:
    def __call__(self, record):
        if record["sample_position"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return TinyTrainer.build_mapper(None, True)(record)


class _DyingWorker(TinyTrainer):
    @classmethod
    def build_mapper(cls, cfg, is_train):
        return _DyingMapper()


def test_a_killed_worker_is_explained_and_loses_nothing(tmp_path, dataset):
    cfg = tiny_config(tmp_path / "out", dataset, "DATALOADER.NUM_WORKERS", "1", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    with pytest.raises(TrainingError, match="worker .* SIGKILL.*NUM_WORKERS"):
        run(cfg, trainer_class=_DyingWorker)
    run(tiny_config(tmp_path / "whole", dataset, "DATALOADER.ASPECT_RATIO_GROUPING", "False"))
    run(cfg, resume=True)
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "whole")


def test_a_hung_worker_is_not_waited_for_for_ever(tmp_path, dataset):
    class Hung(TinyTrainer):
        @classmethod
        def build_mapper(cls, cfg, is_train):
            import time

            return lambda record: time.sleep(60)

    cfg = tiny_config(tmp_path / "out", dataset, "DATALOADER.NUM_WORKERS", "1", "DATALOADER.TIMEOUT", "1")
    with pytest.raises(TrainingError, match="timed out after 1 seconds"):
        run(cfg, trainer_class=Hung)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_disappears_is_named(tmp_path, dataset, workers):
    for path in (tmp_path / "data").glob("*.png"):
        path.unlink()
    with pytest.raises(TrainingError) as caught:
        run(tiny_config(tmp_path / "out", dataset, "DATALOADER.NUM_WORKERS", workers))
    assert str(caught.value).count("\n") == 0 and ".png cannot be used" in str(caught.value)


def test_a_full_disk_stops_the_metrics_with_code_3(tmp_path, dataset):
    import errno

    class Full(TinyTrainer):
        def after_step(self):
            super().after_step()
            if self.iter == 4:
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match="No space left to write .*out .* MiB free.*--resume"):
        run(tiny_config(tmp_path / "out", dataset, "SOLVER.CHECKPOINT_PERIOD", "2"), trainer_class=Full)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"


def test_a_delta_that_cannot_be_written_is_no_mistake_of_the_start(tmp_path, dataset):
    class Blocked(TinyTrainer):
        def after_step(self):
            (tmp_path / "out" / "delta_final.safetensors").mkdir(exist_ok=True)
            super().after_step()

    with pytest.raises(OutputError, match="delta_final.safetensors cannot be written") as caught:
        run(tiny_config(tmp_path / "out", dataset), trainer_class=Blocked)
    assert caught.value.exit_code == 3


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, dataset, monkeypatch):
    cfg = tiny_config(tmp_path / "out", dataset, "SOLVER.CHECKPOINT_PERIOD", "3")
    import shutil

    usage = shutil.disk_usage(tmp_path)

    class Full(TinyTrainer):
        def save_checkpoint(self, name):
            if self.iter > 2:
                monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
            super().save_checkpoint(name)

    with pytest.raises(OutputError, match="No space left.*needed.*free") as caught:
        run(cfg, trainer_class=Full)
    assert caught.value.exit_code == 3
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not list((tmp_path / "out").glob("*.tmp")) and not list((tmp_path / "out").glob(".*.tmp"))
    monkeypatch.undo()
    assert run(cfg, resume=True).start_iter == 3


@pytest.mark.parametrize("words, part", [
    (("SOLVER.IMS_PER_BATCH", "3"), "SOLVER.IMS_PER_BATCH was 2, is 3"),
    (("SEED", "6"), "SEED was 5, is 6"),
    (("SOLVER.OPTIMIZER", "SGD"), "SOLVER.OPTIMIZER was 'ADAMW', is 'SGD'"),
])
def test_a_run_is_not_resumed_as_another(tmp_path, dataset, words, part):
    run(tiny_config(tmp_path, dataset))
    with pytest.raises(ConfigError, match=part):
        run(tiny_config(tmp_path, dataset, "SOLVER.MAX_ITER", "9", *words), resume=True)


def test_a_harmless_difference_is_a_warning(tmp_path, dataset, caplog):
    run(tiny_config(tmp_path, dataset))
    with caplog.at_level("WARNING", "lowrank_d2"):
        run(tiny_config(tmp_path, dataset, "SOLVER.MAX_ITER", "9", "SOLVER.BASE_LR", "0.5"), resume=True)
    assert "SOLVER.BASE_LR was 0.001, is 0.5" in caplog.text and "MAX_ITER" not in caplog.text


def test_a_foreign_checkpoint_is_not_resumed(tmp_path, dataset):
    torch.save({"model": {}, "iteration": 3}, tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    with pytest.raises(CheckpointError, match="leave out --resume"):
        run(tiny_config(tmp_path, dataset), resume=True)


def test_numpy_generators_are_part_of_the_state(tmp_path, dataset):
    """What a hook draws from numpy and Python continues after a resume too."""
    import random

    class Drawing(TinyTrainer):
        drawn = []

        def run_step(self):
            super().run_step()
            type(self).drawn.append((self.iter, np.random.rand(), random.random()))

    words = ("SOLVER.CHECKPOINT_PERIOD", "3")
    run(tiny_config(tmp_path / "whole", dataset, *words), trainer_class=Drawing)
    expected, Drawing.drawn = Drawing.drawn, []
    with pytest.raises(ZeroDivisionError):
        run(tiny_config(tmp_path / "cut", dataset, *words), stop_after=5, trainer_class=Drawing)
    run(tiny_config(tmp_path / "cut", dataset, *words), resume=True, trainer_class=Drawing)
    assert Drawing.drawn[:5] == expected[:5] and Drawing.drawn[5:] == expected[3:]
