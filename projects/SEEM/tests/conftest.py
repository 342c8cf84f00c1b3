"""A small SEEM and images for it."""
from functools import partial

import pytest
import torch
from detectron2.structures import BitMasks, Instances

from lowrank_d2.errors import ConfigError
from projects.SEEM.tests.models import CONFIGS, SMALL, without_vocabulary
from seem.tokenizer import find_vocabulary
from tests.small_models import configured, random_model


@pytest.fixture
def small_config():
    """small_config({"MODEL.SEEM.DEC_LAYERS": 2}) -> a config."""
    return partial(configured, CONFIGS / "seem_focall.yaml", SMALL)


@pytest.fixture
def small_model(small_config, monkeypatch):
    """small_model({key: value}) -> a model with random weights, none of them zero, in evaluation mode."""
    without_vocabulary(monkeypatch)
    return lambda changes=None: random_model(small_config(changes))


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
