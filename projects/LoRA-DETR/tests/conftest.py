"""Makes the project importable; its golden cases."""
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import lora_detr_cases as cases  # noqa: E402
from tests.golden.conftest import golden  # noqa: E402, F401  a fixture: the module golden.py


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
