"""Makes the project importable; its golden cases; small models, images and objects."""
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

TESTS = Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import lora_detr_cases as cases  # noqa: E402
from lowrank_d2.engine.defaults import load_config  # noqa: E402
from tests.golden.conftest import golden  # noqa: E402, F401  a fixture: the module golden.py

CONFIGS = TESTS.parent / "configs"


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

    def make(name, changes=None):
        torch.manual_seed(0)
        model = build_model(small_config(name, changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def batch():
    """batch(3, 0) -> two images of different sizes with three objects and none, of 80 classes."""

    def make(*counts):
        torch.manual_seed(1)
        inputs = []
        for i, count in enumerate(counts):
            height, width = 64 + 16 * (i % 2), 96 - 16 * (i % 3)
            low = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.cat((low, low + 5 + 20 * torch.rand(count, 2)), dim=1))
            instances.gt_classes = torch.randint(80, (count,))
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            inputs.append({"image": image, "height": 2 * height, "width": width, "instances": instances})
        return inputs

    return make
