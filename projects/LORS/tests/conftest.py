"""A small AdaMixer, images for it, and the golden cases."""
import importlib.util
import json
import os
from pathlib import Path

import pytest

from projects.LORS.tests.models import CONFIGS, KEEP, SMALL
from tests.small_models import configured, random_model, two_images

SHARED = Path(__file__).resolve().parents[4] / "shared" / "golden"
ROOT = Path(os.environ.get("LOWRANK_D2_GOLDEN", SHARED))


def golden_cases(lors: bool) -> list:
    """The cases below the golden root, as parameters; one that is skipped when there are none."""
    files = sorted((ROOT / "adamixer").rglob("case.json"))
    found = [file.parent for file in files if ("lors" in json.loads(file.read_text())["config"]) == lors]
    if not found:
        reason = f"no golden cases of {'LORS' if lors else 'AdaMixer'} below {ROOT}; set LOWRANK_D2_GOLDEN"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(folder, id=folder.name) for folder in found]


def pytest_generate_tests(metafunc):
    for fixture, lors in (("adamixer_case", False), ("lors_case", True)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, golden_cases(lors), indirect=True)


@pytest.fixture(scope="session")
def rules():
    """The generator of the golden cases' weights and inputs."""
    file = SHARED / "adamixer" / "rules.py"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    spec = importlib.util.spec_from_file_location("adamixer_rules", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def adamixer_case(request, rules):
    return rules.load(request.param)


@pytest.fixture
def lors_case(request, rules):
    return rules.load(request.param)


@pytest.fixture
def reference():
    """reference("init.json") -> what a file beside the golden cases holds."""

    def read(name):
        file = SHARED / "adamixer" / name
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        return json.loads(file.read_text())

    return read


@pytest.fixture
def small_config():
    """small_config("lors_R50", {"MODEL.ADAMIXER.NUM_STAGES": 2}) -> a config."""
    return lambda name="adamixer_R50", changes=None: configured(CONFIGS / f"{name}.yaml", SMALL, changes)


@pytest.fixture
def small_model(small_config):
    """small_model("lors_R50", {key: value}) -> a model with random weights, none of them zero, in evaluation mode."""
    return lambda name="adamixer_R50", changes=None: random_model(small_config(name, changes), keep=KEEP)


@pytest.fixture
def batch():
    """Two images of different sizes with three objects and none."""
    return two_images([0, 4, 2])
