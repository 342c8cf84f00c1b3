"""Golden cases of the project; small models, images and objects."""
from pathlib import Path

import lora_detr_cases as cases
import pytest
import torch
from detectron2.structures import Instances

from lowrank_d2.engine.defaults import load_config
from tests.golden.conftest import golden  # noqa: F401  a fixture: the module golden.py
from tests.small_models import boxes_in, random_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def pytest_generate_tests(metafunc):
    for fixture, mode in (("eval_case", "eval"), ("train_case", "train")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, cases.parameters(mode), indirect=True)


@pytest.fixture
def eval_case(request, golden):  # noqa: F811
    return golden.load(request.param)


@pytest.fixture
def train_case(request, golden):  # noqa: F811
    return golden.load(request.param)


@pytest.fixture
def small_config():
    """small_config("deformable_detr_R50_lora3", {"MODEL.LORA_DETR.RANK": "4"}) -> a small model of that file."""

    def make(name, changes=None):
        words = ["MODEL.DEVICE", "cpu", *(word for pair in (changes or {}).items() for word in pair)]
        return load_config([str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "mini.yaml")], words)

    return make


@pytest.fixture
def small_model(small_config):
    """As `small_config` -> the model in evaluation mode, with random weights, none of them zero."""
    return lambda name, changes=None: random_model(small_config(name, changes), scale=0.02)


@pytest.fixture
def batch():
    """batch(3, 0) -> two images of different sizes with three objects and none, of 80 classes."""

    def make(*counts):
        torch.manual_seed(1)
        inputs = []
        for i, count in enumerate(counts):
            height, width = 64 + 16 * (i % 2), 96 - 16 * (i % 3)
            instances = Instances((height, width))
            instances.gt_boxes = boxes_in(height, width, count)
            instances.gt_classes = torch.randint(80, (count,))
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            inputs.append({"image": image, "height": 2 * height, "width": width, "instances": instances})
        return inputs

    return make
