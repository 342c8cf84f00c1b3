"""Each registered dataset name trains or is evaluated by train_net.py, composed as datasets/README.md says."""

import json
import math
from pathlib import Path

import pytest

from lowrank_d2.engine.config_file import read_settings
from lowrank_d2.engine.defaults import load_config

from tests.acceptance.conftest import QUICK, ROOT, SMALL

# Overlay, and the pairs of names that it trains and evaluates.
PAIRS = [
    ("ndd20", "ndd20_train", "ndd20_val"),
    ("ndd20", "ndd20_all_train", "ndd20_all_val"),
    ("zerowaste", "zerowaste_train", "zerowaste_val"),
    ("zerowaste", None, "zerowaste_test"),
    ("wixray", "wixray_train", "wixray_val"),
    ("cityscapes", "cityscapes_instance_train", "cityscapes_instance_val"),
]
TRAINED = [train for _, train, _ in PAIRS if train]
EVALUATED = [val for _, _, val in PAIRS]
CITYSCAPES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def composed(overlay: str) -> list[str]:
    return [*SMALL, f"configs/datasets/{overlay}.yaml", "configs/methods/lora_r8.yaml", "configs/datasets/mini.yaml"]


@pytest.fixture(scope="module")
def runs(shell, places, base, tmp_path_factory) -> dict[str, Path]:
    """OUTPUT_DIR of a run of two iterations and an evaluation, by each name that took part."""
    folder = tmp_path_factory.mktemp("runs")
    jobs, output = {}, {}
    for overlay, train, val in PAIRS:
        out = output[train] = output[val] = folder / val
        words = composed(overlay) + ([] if train else ["--eval-only"])
        words += [*QUICK, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(out)]
        words += ["DATASETS.TRAIN", f"('{train or 'zerowaste_train'}',)", "DATASETS.TEST", f"('{val}',)"]
        if train is None:
            words += ["MODEL.PEFT.DELTA", str(folder / "zerowaste_val" / "delta_final.safetensors")]
        jobs[val] = words
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ended = shell(ROOT / "tests/acceptance/jobs.py", folder / "jobs.json", folder / "codes.json", **places)
    assert ended.code == 0, ended.err
    codes = json.loads((folder / "codes.json").read_text())
    assert codes == dict.fromkeys(jobs, 0), ended.err
    return output


@pytest.mark.parametrize("name", TRAINED)
def test_a_train_name_trains(runs, name):
    lines = [json.loads(line) for line in (runs[name] / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert (runs[name] / "delta_final.safetensors").stat().st_size < 2_000_000
    assert load_config([str(runs[name] / "config.yaml")]).DATASETS.TRAIN == (name,)


@pytest.mark.parametrize("name", [name for name in EVALUATED if name != "zerowaste_test"])
def test_a_val_name_is_evaluated(runs, name):
    last = json.loads((runs[name] / "metrics.json").read_text().splitlines()[-1])
    assert 0 <= last["segm/AP"] <= 100
    if name.startswith("cityscapes"):
        assert {f"segm/AP-{each}" for each in CITYSCAPES} <= set(last) and "bbox/AP" not in last
    else:
        assert 0 <= last["bbox/AP"] <= 100
        results = json.loads((runs[name] / "inference" / "coco_instances_results.json").read_text())
        assert len({result["image_id"] for result in results}) == 4


def test_the_test_split_is_evaluated_with_the_delta(runs):
    truth = list((runs["zerowaste_test"] / "inference").glob("zerowaste_test_truth_*.json"))
    results = json.loads((runs["zerowaste_test"] / "inference" / "coco_instances_results.json").read_text())
    images = json.loads(truth[0].read_text())["images"]
    assert len(truth) == 1 and {result["image_id"] for result in results} == {image["id"] for image in images}
    assert {result["category_id"] for result in results} <= {1, 2, 3, 4}


def test_cityscapes_leaves_nothing_behind(runs):
    assert not (ROOT / "matches.json").exists()
    assert not list((runs["cityscapes_instance_val"] / "inference").glob("*.png"))


@pytest.mark.parametrize("model", ["maskdino_R50", "maskdino_SwinL", "maskdino_small"])
@pytest.mark.parametrize("overlay", ["ndd20", "zerowaste", "wixray", "cityscapes", "source", "mini"])
def test_a_dataset_leaves_pixel_statistics_to_the_weights(model, overlay):
    files = [str(ROOT / f"configs/mask_dino/{model}.yaml"), str(ROOT / f"configs/datasets/{overlay}.yaml")]
    cfg = load_config([*files, str(ROOT / "configs/methods/lora_r8.yaml")])
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert not {"MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"} & {setting.key for setting in read_settings(files[1])}
