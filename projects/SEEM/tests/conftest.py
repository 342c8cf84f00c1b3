"""Makes the project importable; a small SEEM and images for it."""
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

PROJECT = Path(__file__).resolve().parents[1]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from lowrank_d2.engine.defaults import load_config  # noqa: E402
from lowrank_d2.errors import ConfigError  # noqa: E402
from projects.SEEM.tests.models import CONFIGS, SMALL, randomised, without_vocabulary  # noqa: E402
from seem.tokenizer import find_vocabulary  # noqa: E402


@pytest.fixture
def small_config():
    """small_config({"MODEL.SEEM.DEC_LAYERS": 2}) -> a config."""

    def make(changes=None):
        words = [str(word) for pair in {**SMALL, **(changes or {})}.items() for word in pair]
        return load_config(str(CONFIGS / "seem_focall.yaml"), words)

    return make


@pytest.fixture
def small_model(small_config, monkeypatch):
    """small_model({key: value}) -> a model with random weights, none of them zero, in evaluation mode."""
    without_vocabulary(monkeypatch)

    def make(changes=None):
        torch.manual_seed(0)
        return randomised(build_model(small_config(changes)))

    return make


@pytest.fixture
def batch():
    """Two images of different sizes with three objects and none."""
    torch.manual_seed(1)
    inputs = []
    for (height, width), count in (((64, 96), 3), ((48, 80), 0)):
        instances = Instances((height, width))
        instances.gt_classes = torch.tensor([2, 0, 2])[:count]
        instances.gt_masks = BitMasks(torch.nn.functional.interpolate(
            torch.randn(1, count, 4, 6), size=(height, width), mode="bilinear")[0] > 0
        ) if count else BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "height": 2 * height, "width": width, "instances": instances})
    return inputs


@pytest.fixture
def vocabulary():
    """Path of CLIP's vocabulary; skips the test where no package brings it."""
    try:
        return find_vocabulary()
    except ConfigError as error:
        pytest.skip(str(error))
