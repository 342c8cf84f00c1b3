import os
import random
import sys

import numpy as np
import pytest
import torch
from detectron2.utils import env


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_seeds():
    env.seed_all_rng(5)
    first = draw()
    env.seed_all_rng(5)
    assert draw() == first
    env.seed_all_rng(6)
    assert all(a != b for a, b in zip(draw(), first))
    env.seed_all_rng()
    assert draw() != first


def test_import_file(tmp_path):
    path = tmp_path / "anything.py"
    path.write_text("VALUE = 3\n")
    assert env._import_file("made_up", str(path)).VALUE == 3 and "made_up" not in sys.modules
    env._import_file("made_up", str(path), make_importable=True)
    assert sys.modules.pop("made_up").VALUE == 3


def test_custom_environment(tmp_path):
    path = tmp_path / "custom.py"
    path.write_text("import os\ndef setup_environment():\n    os.environ['CUSTOM_ENV_RAN'] = '1'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUSTOM_ENV_RAN", "0")
        env.setup_custom_environment(str(path))
        assert os.environ["CUSTOM_ENV_RAN"] == "1"
    path.write_text("nothing = 1\n")
    with pytest.raises(AssertionError):
        env.setup_custom_environment(str(path))
