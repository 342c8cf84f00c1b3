"""A folder of pictures and a COCO file as people have them, from the check to the prediction, command by command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lowrank_d2.peft import read_header

from tests.acceptance.conftest import QUICK, SMALL

CLASSES = ["Ameise", "Biene ü", "猫"]
METHOD = ["configs/methods/lora_r8.yaml", "configs/datasets/mini.yaml"]


def run_lengths(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def segmentation(kind: int, x: int, y: int, height: int, width: int):
    """The square of 24 pixels at (x, y): a polygon, compressed or uncompressed run lengths."""
    if kind == 0:
        return [[x, y, x + 24, y, x + 24, y + 24, x, y + 24]]
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + 24, x : x + 24] = 1
    if kind == 1:
        return run_lengths(mask)
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [height, width], "counts": np.diff([0, *edges, flat.size]).tolist()}


def write(folder: Path, name: str, count: int, seed: int) -> Path:
    """`count` pictures in nested folders; the first is a photograph that lies on its side, as its EXIF tag says."""
    random = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 3 * key, "name": each} for key, each in enumerate(CLASSES)][::-1]
    for number in range(count):
        height, width = (96, 64) if number == 0 else (64, 96)
        pixels = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
        x, y = int(random.integers(2, width - 26)), int(random.integers(2, height - 26))
        pixels[y : y + 24, x : x + 24, number % 3] = 250
        path = f"{name}/été {number % 2}/Bild {number}.{'jpg' if number == 0 else 'PNG'}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        if number == 0:
            tag = Image.Exif()
            tag[0x0112] = 6  # shown turned by 90 degrees clockwise
            picture.transpose(Image.Transpose.ROTATE_90).save(folder / path, quality=95, exif=tag)
        else:
            picture.save(folder / path)
        content["images"].append({"id": number, "file_name": path, "height": height, "width": width})
        outline = segmentation(number % 3, x, y, height, width)
        annotation = {"id": number, "image_id": number, "category_id": 3 * (number % 3), "segmentation": outline}
        content["annotations"].append({**annotation, "bbox": [x, y, 24, 24], "area": 576, "iscrowd": 0})
    (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("eigene daten")
    write(root, "train", 12, 0)
    write(root, "val", 4, 1)
    return root


@pytest.fixture(scope="module")
def trained(shell, folder, base) -> Path:
    """OUTPUT_DIR of one epoch without a validation file."""
    words = [*SMALL, *METHOD, "--train-json", folder / "train.json", "--train-images", folder, "--epochs", 1]
    ended = shell("tools/train_net.py", *words, *QUICK, "MODEL.WEIGHTS", base, "OUTPUT_DIR", folder / "out")
    assert ended.code == 0, ended.err
    assert ended.err.count("error") == 0
    return folder / "out"


def test_the_check_accepts_it(shell, folder):
    words = ["--json", folder / "train.json", "--images", folder, "--decode", "--json-report"]
    ended = shell("tools/check_dataset.py", *words)
    report = json.loads(ended.out.splitlines()[-1])
    assert ended.code == 0 and report["classes"] == CLASSES and report["images"] == 12
    assert {each["kind"] for each in report["problems"]} == {"category-ids", "annotation-id-0"}


def test_an_epoch_without_a_validation_file(trained):
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert sum("total_loss" in line for line in lines) == 6  # 11 of 12 images in batches of two
    assert "segm/AP" in lines[-1]
    truth = json.loads(next((trained / "inference").glob("own_val_truth_*.json")).read_text())
    assert len(truth["images"]) == 1 and [each["name"] for each in truth["categories"]] == CLASSES
    assert list(read_header(trained / "delta_final.safetensors").class_names) == CLASSES


@pytest.mark.slow
def test_an_epoch_with_a_validation_file(shell, folder, base):
    words = ["--train-json", folder / "train.json", "--train-images", folder, "--val-json", folder / "val.json"]
    words += ["--val-images", folder, "--epochs", 1, *QUICK, "MODEL.WEIGHTS", base, "OUTPUT_DIR", folder / "with_val"]
    ended = shell("tools/train_net.py", *SMALL, *METHOD, *words)
    assert ended.code == 0, ended.err
    truth = json.loads(next((folder / "with_val" / "inference").glob("own_val_truth_*.json")).read_text())
    assert [each["id"] for each in truth["images"]] == [0, 1, 2, 3]
    assert [round(each["area"]) for each in truth["annotations"]] == [576] * 4  # the turned photograph too
    assert (folder / "with_val" / "delta_best.safetensors").exists()


def test_the_delta_is_evaluated_and_gives_what_training_reported(shell, folder, trained, base):
    words = ["--eval-only", "--train-json", folder / "train.json", "--train-images", folder, *QUICK]
    words += ["MODEL.WEIGHTS", base, "MODEL.PEFT.DELTA", trained / "delta_final.safetensors"]
    ended = shell("tools/train_net.py", *SMALL, *METHOD, *words, "OUTPUT_DIR", folder / "evaluated")
    assert ended.code == 0, ended.err
    results = [
        json.loads((out / "inference" / "coco_instances_results.json").read_text())
        for out in (trained, folder / "evaluated")
    ]
    assert [(each["image_id"], each["category_id"]) for each in results[0]] == [
        (each["image_id"], each["category_id"]) for each in results[1]
    ]
    assert np.allclose([each["score"] for each in results[0]], [each["score"] for each in results[1]], atol=1e-5)


def test_predictions_carry_the_names(shell, folder, trained, base):
    words = ["--input", folder / "val", "--output", folder / "predicted", "--confidence-threshold", 0]
    words += ["MODEL.WEIGHTS", base, "MODEL.PEFT.DELTA", trained / "delta_final.safetensors", "MODEL.DEVICE", "cpu"]
    ended = shell("tools/predict.py", *SMALL, *words)
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (folder / "predicted").iterdir()) == [
        *(f"Bild {number}.png" for number in range(4)),
        "predictions.json",
    ]
    records = json.loads((folder / "predicted" / "predictions.json").read_text(encoding="utf-8"))
    assert {record["category_name"] for record in records} <= set(CLASSES)
    assert {record["file_name"] for record in records} == {
        f"été {number % 2}/Bild {number}.{'jpg' if number == 0 else 'PNG'}" for number in range(4)
    }
    upright = next(record for record in records if record["file_name"].endswith("jpg"))
    assert upright["segmentation"]["size"] == [96, 64]
    assert Image.open(folder / "predicted" / "Bild 0.png").size == (64, 96)


def test_a_delta_of_other_classes_is_refused(shell, folder, trained, base):
    content = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    content["categories"][0]["name"] = "Wespe"
    (folder / "other.json").write_text(json.dumps(content), encoding="utf-8")
    words = ["--eval-only", "--train-json", folder / "other.json", "--train-images", folder, *QUICK]
    words += ["MODEL.WEIGHTS", base, "MODEL.PEFT.DELTA", trained / "delta_final.safetensors"]
    ended = shell("tools/train_net.py", *SMALL, *METHOD, *words, "OUTPUT_DIR", folder / "refused")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "only in the delta ['猫']" in ended.message and "only in the dataset ['Wespe']" in ended.message
    assert not (folder / "refused").exists()
