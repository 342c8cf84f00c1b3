"""A user's mistakes with own data: found by train_net.py before anything is written, said with value, place and cure.

The readers have tests of their own in tests/data; these go through the command line's own main.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.run import main, train_parser

from tests.acceptance.conftest import ROOT


@pytest.fixture
def content(tmp_path) -> dict:
    """Six pictures of 96 x 64 with one square each, in files below `img`."""
    (tmp_path / "img").mkdir()
    found = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]}
    for number in range(1, 7):
        Image.fromarray(np.full((64, 96, 3), 30 * number, np.uint8)).save(tmp_path / "img" / f"{number}.png")
        found["images"].append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 96})
        outline = [[8, 8, 28, 8, 28, 28, 8, 28]]
        row = {"id": number, "image_id": number, "category_id": 1 + number % 2, "segmentation": outline}
        found["annotations"].append({**row, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0})
    return found


@pytest.fixture
def mistaken(tmp_path, content, capfd, monkeypatch):
    """Runs train_net.py on `content`, or on the text `raw`; it must refuse. Returns its message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # loggers keep the stdout of the first test of a process

    def call(*words: str, raw: bytes | None = None, opts: tuple[str, ...] = ()) -> str:
        Path("a.json").write_bytes(json.dumps(content).encode() if raw is None else raw)
        files = [f"{ROOT}/configs/mask_dino/maskdino_small.yaml", f"{ROOT}/configs/methods/lora_r8.yaml"]
        own = ["--train-json", "a.json", "--train-images", "img", *words]
        keys = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", "out", *opts]
        code = run_tool(main, train_parser(""), ["--config-file", *files, *own, *keys])
        told = capfd.readouterr().err
        assert code == 2 and told.startswith("error: ") and "Traceback" not in told
        assert not Path("out").exists()
        return told

    return call


def set_(section: str, place: int, **values):
    return lambda content: content[section][place].update(values)


@pytest.mark.parametrize(
    "damage, words",
    [
        (set_("annotations", 3, category_id=77), ["category_id 77", "annotations[3] (id 4)", "[1, 2]", "Add the cat"]),
        (set_("annotations", 3, bbox=[8, 8, -5, 20]), ["[8, 8, -5, 20]", "negative", "annotations[3] (id 4)"]),
        (set_("annotations", 3, bbox=[8, float("nan"), 5, 20]), ["nan", "annotations[3] (id 4)"]),
        (set_("annotations", 0, segmentation={"size": [96, 64], "counts": [6144]}), ["[96, 64]", "[64, 96]", "EXIF"]),
        (set_("images", 1, height=32), ["img/2.png", "96 x 32", "96 x 64"]),
        (set_("images", 1, id=1), ["id 1", "images[1]"]),
        (set_("images", 1, file_name="../2.png"), ["../2.png", "lies outside of", "img"]),
        (set_("images", 1, file_name="2.PNG"), ["2.PNG", "there is 2.png", "--skip-missing"]),
        (lambda content: content["annotations"][2].pop("image_id"), ["annotations[2]", "'image_id'"]),
        (lambda content: content["annotations"].clear(), ["nothing to train on", "0 usable"]),
        (lambda content: content["images"].clear(), ["a.json", "nothing to train on"]),
        (lambda content: [row.pop("segmentation") for row in content["annotations"]], ["boxes only", "6 of 6"]),
        (lambda content: [row.update(image_id=99) for row in content["annotations"]], ["6 of 6", "too many"]),
    ],
)
def test_a_record(mistaken, content, damage, words):
    damage(content)
    told = mistaken()
    assert "a.json" in told or "img/" in told
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    "raw, words",
    [
        (b'{"images": [{"id": 1}, {"id"', ["a.json:1:", "incomplete download"]),
        (b"[1, 2]", ["a.json holds a list", "images, annotations and categories"]),
        (b'{"1.png9": {"filename": "1.png", "size": 9, "regions": []}}', ["looks like VIA, COCO expected"]),
        ("{}".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ],
)
def test_a_file(mistaken, raw, words):
    told = mistaken(raw=raw)
    assert all(word in told for word in words), told


def test_a_picture_cut_off(mistaken):
    Path("img/2.png").write_bytes(Path("img/2.png").read_bytes()[:60])
    told = mistaken()
    assert "img/2.png" in told and "truncated" in told and "Fetch them again" in told


def test_several_mistakes_are_said_together(mistaken, content):
    Path("img/1.png").unlink()
    content["annotations"][3]["category_id"] = 77
    content["annotations"][4]["bbox"] = [1, 2, 3]
    told = mistaken()
    assert "1.png" in told and "category_id 77" in told and "[1, 2, 3]" in told


def test_validation_classes_that_differ(mistaken, content):
    wasps = [{"id": 1, "name": "ant"}, {"id": 2, "name": "wasp"}]
    Path("b.json").write_text(json.dumps({**content, "categories": wasps}))
    told = mistaken("--val-json", "b.json")
    assert "missing: bee" in told and "not expected: wasp" in told and "b.json" in told


def test_a_number_of_classes_that_is_not_the_datas(mistaken):
    told = mistaken(opts=("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"))
    assert "NUM_CLASSES is 5" in told and "2 classes (ant, bee)" in told


def test_options_that_need_each_other(mistaken):
    assert "--val-json" in mistaken("--val-images", "img")
