"""Makes the project importable; a small YOLOS, images and targets for it."""
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

PROJECT = Path(__file__).resolve().parents[1]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from lowrank_d2.engine.defaults import load_config  # noqa: E402
from lowrank_d2.modeling.predictions import Target  # noqa: E402
from projects.YOLOS.tests.models import CONFIGS, SMALL, randomised  # noqa: E402


@pytest.fixture
def small_config():
    """small_config({"MODEL.YOLOS.DEPTH": 2}) -> a config."""

    def make(changes=None):
        words = [str(word) for pair in {**SMALL, **(changes or {})}.items() for word in pair]
        return load_config(str(CONFIGS / "yolos_s.yaml"), words)

    return make


@pytest.fixture
def small_model(small_config):
    """small_model({key: value}) -> a model with random weights, none of them zero, in evaluation mode."""

    def make(changes=None):
        torch.manual_seed(0)
        return randomised(build_model(small_config(changes)))

    return make


@pytest.fixture
def batch():
    """Two images of different sizes with three objects and none."""
    torch.manual_seed(1)
    inputs = []
    for (height, width), count in (((64, 96), 3), ((48, 112), 0)):
        low = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat((low, low + 5 + 20 * torch.rand(count, 2)), dim=1))
        instances.gt_classes = torch.tensor([0, 79, 11])[:count]
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "height": 2 * height, "width": width, "instances": instances})
    return inputs


@pytest.fixture
def targets():
    """Of two images, as the criterion takes them."""
    torch.manual_seed(2)
    result = []
    for count in (4, 1):
        center, size = 0.3 + 0.4 * torch.rand(count, 2), 0.05 + 0.3 * torch.rand(count, 2)
        result.append(Target(torch.randint(1, 91, (count,)), torch.cat((center, size), dim=1)))
    return result
