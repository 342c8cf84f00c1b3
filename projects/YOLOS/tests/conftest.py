"""A small YOLOS, images and targets for it."""
from functools import partial

import pytest
import torch

from lowrank_d2.modeling.predictions import Target
from projects.YOLOS.tests.models import CONFIGS, SMALL
from tests.small_models import configured, random_model, two_images


@pytest.fixture
def small_config():
    """small_config({"MODEL.YOLOS.DEPTH": 2}) -> a config."""
    return partial(configured, CONFIGS / "yolos_s.yaml", SMALL)


@pytest.fixture
def small_model(small_config):
    """small_model({key: value}) -> a model with random weights, none of them zero, in evaluation mode."""
    return lambda changes=None: random_model(small_config(changes))


@pytest.fixture
def batch():
    """Two images of different sizes with three objects and none."""
    return two_images([0, 79, 11])


@pytest.fixture
def targets():
    """Of two images, as the criterion takes them."""
    torch.manual_seed(2)
    result = []
    for count in (4, 1):
        center, size = 0.3 + 0.4 * torch.rand(count, 2), 0.05 + 0.3 * torch.rand(count, 2)
        result.append(Target(torch.randint(1, 91, (count,)), torch.cat((center, size), dim=1)))
    return result
