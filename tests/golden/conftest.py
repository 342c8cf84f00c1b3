"""Where the golden cases are, and how a model is built from one.

The cases lie below $LOWRANK_D2_GOLDEN (default: ../shared/golden beside the repository); the generator of their
weights, inputs and draws is always that of ../shared/golden.
"""
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from lowrank_d2.config import add_lowrank_config

SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden"
ROOT = Path(os.environ.get("LOWRANK_D2_GOLDEN", SHARED))
FAMILIES = ("maskdino", "maskdino_adapter_code")


def case_folders(mode: str) -> list[Path]:
    files = [file for family in FAMILIES for file in sorted((ROOT / family).rglob("case.json"))]
    return [file.parent for file in files if json.loads(file.read_text(encoding="utf-8"))["mode"] == mode]


def pytest_generate_tests(metafunc):
    for fixture, mode in (("eval_case", "eval"), ("train_case", "train")):
        if fixture in metafunc.fixturenames:
            cases = [pytest.param(folder, id=str(folder.relative_to(ROOT))) for folder in case_folders(mode)]
            absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no golden cases below {ROOT}"), id="none")
            metafunc.parametrize(fixture, cases or [absent], indirect=True)


@pytest.fixture(scope="session")
def golden():
    """The module golden.py."""
    if not (SHARED / "golden.py").is_file():
        pytest.skip(f"the golden data's generator {SHARED / 'golden.py'} is not here")
    spec = importlib.util.spec_from_file_location("golden", SHARED / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def eval_case(request, golden):
    return golden.load(request.param)


@pytest.fixture
def train_case(request, golden):
    return golden.load(request.param)


@pytest.fixture
def golden_model():
    """case -> its model with its weights, on the CPU."""

    def build(case):
        cfg = get_cfg()
        add_lowrank_config(cfg)
        cfg.merge_from_file(str(case.folder / "config.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        model = build_model(cfg)
        model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in case.weights().items()})
        return model

    return build


@pytest.fixture
def golden_inputs():
    """case -> Detectron2's batched inputs."""

    def convert(item):
        record = {key: item[key] for key in ("height", "width")}
        record["image"] = torch.from_numpy(item["image"].transpose(2, 0, 1).copy())
        if "classes" in item:
            instances = Instances(tuple(item["image"].shape[:2]))
            instances.gt_boxes = Boxes(torch.from_numpy(item["boxes"]))
            instances.gt_classes = torch.from_numpy(item["classes"])
            instances.gt_masks = BitMasks(torch.from_numpy(item["masks"]))
            record["instances"] = instances
        return record

    return lambda case: [convert(item) for item in case.inputs()]
