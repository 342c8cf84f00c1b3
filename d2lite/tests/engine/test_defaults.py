import json
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

import detectron2
from detectron2.config import configurable, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


@META_ARCH_REGISTRY.register()
class ModelOfTestDefaults(nn.Module):
    """Trains a number towards the batch; predicts what it was given."""

    @configurable
    def __init__(self, start):
        super().__init__()
        self.number = nn.Parameter(torch.full((1,), float(start)))

    @classmethod
    def from_config(cls, cfg):
        return {"start": 1.0}

    def forward(self, batch):
        if self.training:
            return {"loss_a": (self.number - batch).square().sum(), "loss_b": self.number.abs().sum()}
        return [{"input": record, "grad": torch.is_grad_enabled()} for record in batch]


class CountingEvaluator(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(outputs)

    def evaluate(self):
        return {"bbox": {"AP": float(self.count)}}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return iter(lambda: torch.zeros(1), None)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[{"image": 1}, {"image": 2}], [{"image": 3}]] if dataset_name == "three" else [[{"image": 1}]]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountingEvaluator()


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ModelOfTestDefaults"
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.SOLVER.MAX_ITER = 30
    cfg.SOLVER.STEPS = (20,)
    cfg.SOLVER.WARMUP_ITERS = 5
    cfg.SOLVER.CHECKPOINT_PERIOD = 20
    cfg.TEST.EVAL_PERIOD = 12
    cfg.DATASETS.TEST = ("three",)
    return cfg


def metrics(cfg):
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as stream:
        return [json.loads(line) for line in stream]


class TestDefaultTrainer:
    def test_hooks(self, cfg):
        names = [type(hook).__name__ for hook in Trainer(cfg)._hooks]
        assert names == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]

    def test_a_whole_run(self, cfg):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        assert trainer.train() is None
        assert trainer.iter == 30
        files = sorted(name for name in os.listdir(cfg.OUTPUT_DIR) if "tfevents" not in name)
        assert files == ["last_checkpoint", "metrics.json", "model_0000019.pth", "model_final.pth"]
        lines = metrics(cfg)
        assert [line["iteration"] for line in lines] == [19, 11, 29, 23, 30]
        assert [line["bbox/AP"] for line in lines if "bbox/AP" in line] == [3.0, 3.0, 3.0]
        expected = {"data_time", "eta_seconds", "iteration", "loss_a", "loss_b", "lr", "rank_data_time", "time"}
        assert set(lines[2]) == expected | {"total_loss"}
        assert lines[2]["lr"] == pytest.approx(1e-4)

        checkpoint = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
        assert set(checkpoint) == {"model", "trainer", "iteration"}
        assert set(checkpoint["trainer"]) == {"iteration", "hooks", "_trainer"}
        assert set(checkpoint["trainer"]["_trainer"]) == {"iteration", "optimizer"}
        assert checkpoint["trainer"]["hooks"] == {"LRScheduler": {"base_lrs": [0.001], "last_epoch": 30}}
        assert checkpoint["iteration"] == checkpoint["trainer"]["iteration"] == 29

    def test_going_on_is_like_never_having_stopped(self, cfg, tmp_path):
        cfg.DATASETS.TEST = ()
        whole = Trainer(cfg)
        whole.train()

        cfg.OUTPUT_DIR = str(tmp_path / "other")
        first = Trainer(cfg)
        first.max_iter = 20
        first.train()
        second = Trainer(cfg)
        second.resume_or_load(resume=True)
        assert second.start_iter == 20
        second.train()
        assert torch.equal(second.model.number, whole.model.number)

    @mended
    def test_a_finished_run_ends_at_once(self, cfg):
        trainer = Trainer(cfg)
        trainer.train()
        before = metrics(cfg)
        again = Trainer(cfg)
        again.resume_or_load(resume=True)
        again.train()
        assert again.iter == 30
        assert metrics(cfg) == before

    def test_expected_results(self, cfg):
        cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 3.0, 0.1]]
        assert Trainer(cfg).train() == {"bbox": {"AP": 3.0}}

    def test_parts_can_be_replaced(self, cfg):
        trainer = Trainer(cfg)
        model = ModelOfTestDefaults(start=5.0)
        trainer.model = model
        assert trainer._trainer.model is model and trainer.model is model
        assert trainer.optimizer is trainer._trainer.optimizer

    def test_precise_batch_norm(self, cfg):
        class WithNorm(Trainer):
            @classmethod
            def build_model(cls, cfg):
                return nn.BatchNorm1d(1)

        cfg.TEST.PRECISE_BN.ENABLED = True
        assert "PreciseBN" in [type(hook).__name__ for hook in WithNorm(cfg)._hooks]
        assert "PreciseBN" not in [type(hook).__name__ for hook in Trainer(cfg)._hooks]

    def test_testing(self, cfg):
        model = ModelOfTestDefaults(start=1.0)
        assert Trainer.test(cfg, model) == {"bbox": {"AP": 3.0}}
        cfg.DATASETS.TEST = ("three", "one")
        assert Trainer.test(cfg, model) == {"three": {"bbox": {"AP": 3.0}}, "one": {"bbox": {"AP": 1.0}}}
        with pytest.raises(AssertionError):
            Trainer.test(cfg, model, evaluators=CountingEvaluator())

    def test_no_evaluator_no_evaluation(self, cfg):
        class WithoutEvaluator(Trainer):
            build_evaluator = DefaultTrainer.build_evaluator

        assert WithoutEvaluator.test(cfg, ModelOfTestDefaults(start=1.0)) == {}

    @mended
    def test_mixed_precision_on_the_cpu(self, cfg):
        cfg.SOLVER.AMP.ENABLED = True
        cfg.DATASETS.TEST = ()
        trainer = Trainer(cfg)
        assert type(trainer._trainer).__name__ == "AMPTrainer"
        trainer.train()
        assert 0 < trainer.model.number.item() < 1


def test_auto_scaling(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 8, 16, 0.02
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 2)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.REFERENCE_WORLD_SIZE) == (4, pytest.approx(0.005), 2)
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.STEPS, solver.CHECKPOINT_PERIOD) == (120, 20, (80,), 80)
    assert scaled.TEST.EVAL_PERIOD == 48
    assert scaled.is_frozen() and cfg.SOLVER.MAX_ITER == 30
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg


class TestDefaultPredictor:
    image = (np.arange(10 * 25 * 3) % 251).astype(np.uint8).reshape(10, 25, 3)

    def test_bgr_is_resized(self, cfg):
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 30
        output = DefaultPredictor(cfg)(self.image)
        given = output["input"]
        assert (given["height"], given["width"]) == (10, 25)
        assert given["image"].dtype == torch.float32
        assert tuple(given["image"].shape) == (3, 12, 30)
        assert output["grad"] is False

    def test_rgb_without_resizing(self, cfg):
        cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = "RGB", 0
        MetadataCatalog.get("test_defaults_classes").set(thing_classes=["a"])
        cfg.DATASETS.TEST = ("test_defaults_classes",)
        predictor = DefaultPredictor(cfg)
        expected = torch.as_tensor(self.image[:, :, ::-1].copy()).permute(2, 0, 1).float()
        assert torch.equal(predictor(self.image)["input"]["image"], expected)
        assert predictor.metadata.thing_classes == ["a"]
        assert not predictor.model.training
        cfg.MODEL.DEVICE = "changed later"
        assert predictor.cfg.MODEL.DEVICE == "cpu"

    def test_weights(self, cfg, tmp_path):
        torch.save({"model": {"number": torch.full((1,), 7.0)}}, tmp_path / "a.pth")
        cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
        assert DefaultPredictor(cfg).model.number.item() == 7

    def test_formats(self, cfg):
        cfg.INPUT.FORMAT = "L"
        with pytest.raises(AssertionError):
            DefaultPredictor(cfg)

    @mended
    def test_random_numbers_stay_the_callers(self, cfg):
        predictor = DefaultPredictor(cfg)
        np.random.seed(0)
        expected = np.random.rand()
        np.random.seed(0)
        predictor(self.image)
        assert np.random.rand() == expected


def test_arguments():
    arguments = default_argument_parser().parse_args(
        ["--config-file", "a.yaml", "--num-gpus", "2", "--resume", "SOLVER.BASE_LR", "0.1"]
    )
    assert arguments.dist_url.startswith("tcp://127.0.0.1:")
    del arguments.dist_url
    assert vars(arguments) == {
        "config_file": "a.yaml",
        "resume": True,
        "eval_only": False,
        "num_gpus": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "opts": ["SOLVER.BASE_LR", "0.1"],
    }
    assert default_argument_parser("something else").epilog == "something else"


class TestDefaultSetup:
    @pytest.fixture(autouse=True)
    def restore(self):
        """The loggers and the cuDNN switch are global."""
        benchmark = torch.backends.cudnn.benchmark
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
        before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
        yield
        torch.backends.cudnn.benchmark = benchmark
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate

    def test_yacs(self, cfg):
        cfg.SEED = 5
        cfg.CUDNN_BENCHMARK = True
        default_setup(cfg, {})
        drawn = torch.rand(1).item()
        assert sorted(os.listdir(cfg.OUTPUT_DIR)) == ["config.yaml", "log.txt"]
        other = get_cfg()
        other.merge_from_file(os.path.join(cfg.OUTPUT_DIR, "config.yaml"))
        assert other.SEED == 5 and other.MODEL.META_ARCHITECTURE == "ModelOfTestDefaults"
        assert torch.backends.cudnn.benchmark is True
        torch.manual_seed(5)
        assert torch.rand(1).item() == drawn

    def test_evaluation_leaves_cudnn(self, cfg):
        cfg.CUDNN_BENCHMARK = True
        torch.backends.cudnn.benchmark = False
        default_setup(cfg, SimpleNamespace(eval_only=True))
        assert torch.backends.cudnn.benchmark is False

    def test_omegaconf(self, tmp_path):
        (tmp_path / "given.py").write_text("a_line_of_the_config = 1")
        cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 6}})
        default_setup(cfg, SimpleNamespace(config_file=str(tmp_path / "given.py")))
        drawn = torch.rand(1).item()
        assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["train"]["seed"] == 6
        assert "a_line_of_the_config" in (tmp_path / "out" / "log.txt").read_text()
        torch.manual_seed(6)
        assert torch.rand(1).item() == drawn


def test_writers(tmp_path):
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(writer).__name__ for writer in writers] == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]
    assert os.path.exists(tmp_path / "new" / "metrics.json")
    for writer in writers:
        writer.close()


def test_a_single_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model
