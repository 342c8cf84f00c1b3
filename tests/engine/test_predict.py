"""Pictures and COCO results for files and folders, and what is refused."""
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from lowrank_d2.engine import predict
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.predict import coco_records, find_files, predict_files
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.errors import ConfigError, DataError, OutputError
from lowrank_d2.peft import save_delta
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from tests.engine.tiny import write_dataset

CONFIG = str(Path(__file__).with_name("small_maskdino.yaml"))


@pytest.fixture
def images(tmp_path):
    write_dataset(tmp_path / "images", images=3)
    (tmp_path / "images" / "annotations.json").unlink()
    return tmp_path / "images"


@pytest.fixture
def config(tmp_path):
    """A model of two classes with its base weights and a delta."""
    torch.manual_seed(0)
    words = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    model = LowRankTrainer.build_model(load_config(CONFIG, [*words, "MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "all"]))
    torch.save(model.state_dict(), tmp_path / "base.pth")
    adapted = LowRankTrainer.build_model(load_config(CONFIG, words))
    adapted.load_state_dict(model.state_dict(), strict=False)
    save_delta(adapted, tmp_path / "delta.safetensors", class_names=["cat", "dog"])
    return load_config(CONFIG, [
        "MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "all", "MODEL.WEIGHTS", str(tmp_path / "base.pth"),
        "MODEL.PEFT.DELTA", str(tmp_path / "delta.safetensors"),
    ])


def test_a_folder(tmp_path, images, config):
    (images / "below").mkdir()
    shutil.copy(images / "1.png", images / "below" / "1.png")
    summary = predict_files(config, str(images), str(tmp_path / "out"), 0.0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "1_2.png", "2.png", "predictions.json"]
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert summary.images == 4 and summary.instances == len(records) == 4 * 20 and summary.skipped == []
    assert {record["file_name"] for record in records} == {"0.png", "1.png", "2.png", "below/1.png"}
    assert {(record["category_id"], record["category_name"]) for record in records} == {(1, "cat"), (2, "dog")}
    assert records[0]["segmentation"]["size"] == list(cv2.imread(str(images / "0.png")).shape[:2])
    assert cv2.imread(str(tmp_path / "out" / "1.png")).shape == cv2.imread(str(images / "1.png")).shape


def test_the_threshold_divides_the_instances(tmp_path, images, config):
    def scores(threshold):
        predict_files(config, str(images / "1.png"), str(tmp_path / "out"), threshold)
        return [record["score"] for record in json.loads((tmp_path / "out" / "predictions.json").read_text())]

    every = scores(0.0)
    middle = sorted(every)[len(every) // 2]
    assert sorted(scores(middle)) == sorted(score for score in every if score >= middle)
    assert scores(1.0) == []


def test_files_that_are_no_images_are_skipped_and_counted(tmp_path, images, config):
    (images / "notes.txt").write_text("no image")
    (images / "cut.png").write_bytes((images / "1.png").read_bytes()[:300])
    os.symlink("loop", images / "loop")
    os.symlink(images, images / "again")
    os.symlink(images / "1.png", images / "same.png")
    summary = predict_files(config, str(images), str(tmp_path / "out"), 0.5)
    assert summary.images == 3 and [Path(path).name for path in summary.skipped] == ["cut.png", "notes.txt"]


def test_what_is_refused(tmp_path, images, config):
    out = str(tmp_path / "out")
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="confidence-threshold"):
            predict_files(config, str(images), out, threshold)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        predict_files(config, str(tmp_path / "empty"), out)
    with pytest.raises(DataError, match="does not exist"):
        predict_files(config, str(tmp_path / "absent"), out)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="none of the 1 files"):
        predict_files(config, str(tmp_path / "texts"), out)
    with pytest.raises(OutputError, match="would be overwritten"):
        predict_files(config, str(images), str(images))
    with pytest.raises(OutputError, match="is a file"):
        predict_files(config, str(images), str(images / "1.png"))
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS"):
        predict_files(load_config(CONFIG), str(images), out)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_inside_the_input_is_not_read(images):
    (images / "out").mkdir()
    shutil.copy(images / "1.png", images / "out" / "1.png")
    (images / ".hidden.png").write_bytes(b"")
    found = find_files(str(images), leave_out=str(images / "out"))
    assert [Path(path).name for path in found] == ["0.png", "1.png", "2.png"]


def test_a_checkpoint_of_a_run_knows_its_classes(tmp_path, images, config):
    model = torch.load(tmp_path / "base.pth")
    torch.save({"model": model, "trainer": {"class_names": ["x", "y"]}}, tmp_path / "run.pth")
    cfg = load_config(CONFIG, ["MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "all", "MODEL.WEIGHTS", str(tmp_path / "run.pth")])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 80
    assert predict.Predictor(cfg).class_names == ["x", "y"]
    save_file(model, tmp_path / "run.safetensors", metadata={"class_names": '["x", "y"]'})
    cfg.MODEL.WEIGHTS = str(tmp_path / "run.safetensors")
    assert predict.Predictor(cfg).class_names == ["x", "y"]


def test_words_need_a_model_that_reads_them(tmp_path, images, config):
    with pytest.raises(ConfigError, match="MaskDINO has the classes that it was trained with"):
        predict_files(config, str(images), str(tmp_path / "out"), words=["dolphin"])


def test_records_follow_coco():
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[0, 2:4, 1:5] = True
    instances = Instances(
        (6, 8), pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 5.0, 4.0]])), scores=torch.tensor([0.5]),
        pred_classes=torch.tensor([1]), pred_masks=mask,
    )
    record, = coco_records(instances, 3, "a.png", ["one", "two"], [7, 9])
    assert record["bbox"] == [1.0, 2.0, 4.0, 2.0] and record["score"] == 0.5 and record["image_id"] == 3
    assert (record["category_id"], record["category_name"], record["file_name"]) == (9, "two", "a.png")
    assert np.array_equal(coco_mask.decode(record["segmentation"]), mask[0].numpy())
    assert json.loads(json.dumps(record)) == record
    assert coco_records(instances, 3, "a.png", [])[0]["category_id"] == 2
