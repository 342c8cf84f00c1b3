"""Where the golden cases are, and how a model is built from one.

The cases lie below $LOWRANK_D2_GOLDEN (default: ../shared/golden beside the repository), and a few small ones in
tests/golden/small, so that a plain clone takes the same path. The generator of their weights, inputs and draws is
that of ../shared/golden; where that is absent, the copy beside the small cases.
"""
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from lowrank_d2.config import add_lowrank_config

SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden"
SMALL = Path(__file__).resolve().parent / "small"
ROOT = Path(os.environ.get("LOWRANK_D2_GOLDEN", SHARED))
FAMILIES = ("maskdino", "maskdino_adapter_code")


def cases(root: Path, mode: str) -> list:
    """The cases below a folder, as parameters; one that is skipped when there are none."""
    files = [file for family in FAMILIES for file in sorted((root / family).rglob("case.json"))]
    found = [file.parent for file in files if json.loads(file.read_text(encoding="utf-8"))["mode"] == mode]
    if not found:
        reason = f"no golden cases of Mask DINO below {root}; set LOWRANK_D2_GOLDEN"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=f"{root.name}-absent")]
    return [pytest.param(folder, id=f"{root.name}/{folder.relative_to(root)}") for folder in found]


def pytest_generate_tests(metafunc):
    for fixture, mode in (("eval_case", "eval"), ("train_case", "train")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, cases(ROOT, mode) + cases(SMALL, mode), indirect=True)


@pytest.fixture(scope="session")
def golden():
    """The module golden.py."""
    file = next(folder / "golden.py" for folder in (SHARED, SMALL) if (folder / "golden.py").is_file())
    spec = importlib.util.spec_from_file_location("golden", file)
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
def golden_model(monkeypatch):
    """case -> its model with its weights, on the CPU; its data set knows the case's things, where it names some."""

    def build(case):
        cfg = get_cfg()
        add_lowrank_config(cfg)
        cfg.merge_from_file(str(case.folder / "config.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        if "things" in case.meta:
            name = cfg.DATASETS.TRAIN[0]
            things = {label: label for label in case.meta["things"]}
            metadata = Metadata(name=name, thing_dataset_id_to_contiguous_id=things)
            monkeypatch.setitem(MetadataCatalog.data, name, metadata)
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
