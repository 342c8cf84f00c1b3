import pytest
import torch
from torch import nn

import detectron2
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


class Sum(DatasetEvaluator):
    def __init__(self, task="sum"):
        self.task = task

    def reset(self):
        self.total = 0

    def process(self, inputs, outputs):
        self.total += sum(outputs)

    def evaluate(self):
        return {self.task: {"value": self.total}}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1)
        self.seen = []

    def forward(self, batch):
        self.seen.append((self.training, self.norm.training, torch.is_grad_enabled()))
        return [x * 2 for x in batch]


def test_evaluates_without_gradients_and_in_eval_mode():
    model = Model()
    assert inference_on_dataset(model, [[1, 2], [3]], Sum()) == {"sum": {"value": 12}}
    assert model.seen == [(False, False, False)] * 2
    assert model.training and model.norm.training


def test_a_new_round_begins_at_zero():
    evaluator = Sum()
    for _ in range(2):
        assert inference_on_dataset(Model(), [[1]], evaluator) == {"sum": {"value": 2}}


def test_several_evaluators():
    results = inference_on_dataset(Model(), [[1]], [Sum("a"), Sum("b")])
    assert dict(results) == {"a": {"value": 2}, "b": {"value": 2}}
    with pytest.raises(AssertionError):
        inference_on_dataset(Model(), [[1]], DatasetEvaluators([Sum(), Sum()]))


def test_no_evaluator_and_no_results():
    assert inference_on_dataset(Model(), [[1]], None) == {}

    class Silent(Sum):
        def evaluate(self):
            return None

    assert inference_on_dataset(Model(), [[1]], Silent()) == {}


def test_a_plain_function():
    assert inference_on_dataset(lambda batch: [x + 1 for x in batch], [[1], [2]], Sum()) == {"sum": {"value": 5}}


def test_callbacks():
    stages = []
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    callbacks = {name: lambda name=name: stages.append(name) for name in names}
    inference_on_dataset(Model(), [[1], [2]], None, callbacks=callbacks)
    assert stages == ["on_start"] + ["before_inference", "after_inference"] * 2 + ["on_end"]


def test_a_model_in_eval_mode_stays_so():
    model = Model().eval()
    inference_on_dataset(model, [[1]], None)
    assert not model.training


@mended
def test_modes_come_back_after_an_exception():
    model = Model()
    with pytest.raises(ZeroDivisionError), inference_context(model):
        assert not model.norm.training
        1 / 0
    assert model.training and model.norm.training


@mended
def test_frozen_parts_stay_in_eval_mode():
    model = Model()
    model.norm.eval()
    with inference_context(model):
        pass
    assert model.training and not model.norm.training
