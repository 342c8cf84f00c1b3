"""Whole runs by tools/train_net.py's command line: own data, checks before anything is written, evaluation."""
import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from lowrank_d2.engine import own_data
from lowrank_d2.engine.defaults import parse, run_tool
from lowrank_d2.engine.run import configure, main, train_parser
from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import read_header

from tests.engine.tiny import losses_of, write_dataset

CONFIG = str(Path(__file__).with_name("small_maskdino.yaml"))


@pytest.fixture
def own(tmp_path):
    json_file = write_dataset(tmp_path / "data", images=12)
    return ["--train-json", str(json_file), "--train-images", str(json_file.parent)]


def configured(*words):
    return configure(parse(train_parser(""), ["--config-file", CONFIG, *words]))


def run(tmp_path, *words):
    """Exit code of train_net.py; words before "--" are options, the rest KEY VALUE."""
    cut = words.index("--") if "--" in words else len(words)
    opts = [*words[cut + 1:], "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
    return run_tool(main, train_parser(""), ["--config-file", CONFIG, *words[:cut], *opts])


def test_own_data_trains_evaluates_and_names_its_classes(tmp_path, own, capfd):
    assert run(tmp_path, *own, "--epochs", "1") == 0
    out = tmp_path / "out"
    printed = capfd.readouterr().out.splitlines()
    assert printed[-1] == f"Files: {out}"
    assert printed[-3].startswith("masks") and printed[-2].startswith("boxes")
    assert len(losses_of(out)) == 6  # 12 images, one held out, batch 2
    header = read_header(out / "delta_final.safetensors")
    assert list(header.class_names) == ["thing"]
    assert {path.name for path in out.iterdir()} >= {
        "config.yaml", "metrics.json", "last_checkpoint", "model_final.pth", "delta_final.safetensors", "inference", "log.txt",
    }
    assert not (out / ".lock").exists()
    assert run(tmp_path, *own, "--epochs", "1", "--resume") == 0
    assert "already ended after 6 iterations" in (out / "log.txt").read_text()
    capfd.readouterr()
    assert run(tmp_path, *own, "--eval-only", "--", "MODEL.WEIGHTS", str(out / "model_final.pth")) == 0
    assert "masks" in capfd.readouterr().out


def test_the_configuration_of_a_run_on_own_data_needs_the_files_again(monkeypatch):
    monkeypatch.setattr(own_data.DatasetCatalog, "list", lambda: ["coco_2017_train"])  # as in a new process
    with pytest.raises(ConfigError, match="'own_train': the run .* had its own files. Name them again: --train-json"):
        configured("DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)")


def test_own_data_reaches_the_configuration(own):
    cfg = configured(*own, "--epochs", "3", "TEST.EVAL_PERIOD", "4", "SOLVER.ACCUMULATE", "2")
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("own_train",), ("own_val",))
    assert MetadataCatalog.get("own_train").thing_classes == ["thing"]
    assert cfg.SOLVER.MAX_ITER == 9 and cfg.SOLVER.STEPS == (7,)  # 3 x 11 images / 4; 5/6 of the way
    assert cfg.TEST.EVAL_PERIOD == 4 and cfg.SOLVER.CHECKPOINT_PERIOD == 3


def test_a_validation_file_is_used_whole(tmp_path, own):
    val = write_dataset(tmp_path / "val", images=3, seed=1)
    cfg = configured(*own, "--val-json", str(val), "--val-images", str(val.parent), "--epochs", "1")
    assert cfg.SOLVER.MAX_ITER == 6  # all 12


@pytest.mark.parametrize("words, part", [
    (["--", "DATASETS.TRAIN", "('ndd20_trian',)"], "'ndd20_trian'.*ndd20_train"),
    (["--"], "nothing to train on"),
    (["--eval-only"], "needs data"),
    (["--train-images", "."], "--train-json"),
    (["--train-json", "a.json"], "--train-images"),
    (["--train-json", "absent.json", "--train-images", "."], "absent.json"),
    (["--num-processes", "3"], "3 processes cannot share evenly"),
    (["--num-gpus", "64"], "64.*GPUs are found"),
    (["--num-gpus", "0"], "at least 1"),
    (["--num-machines", "2"], "--dist-url"),
])
def test_mistakes_are_found_before_anything_is_written(tmp_path, capfd, words, part):
    import re

    assert run(tmp_path, *words) == 2
    error = capfd.readouterr().err
    assert re.search(part, error) and error.count("error:") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_all_records_are_checked_first(tmp_path, own, capfd):
    path = Path(own[1])
    content = json.loads(path.read_text())
    content["annotations"][3]["category_id"] = 77
    path.write_text(json.dumps(content))
    assert run(tmp_path, *own) == 2
    assert "77" in capfd.readouterr().err and not (tmp_path / "out").exists()
    content["annotations"][3]["category_id"] = 1
    path.write_text(json.dumps(content))
    (path.parent / "5.png").write_bytes(b"")
    assert run(tmp_path, *own) == 2
    assert "5.png" in capfd.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("opts, part", [
    (["MODEL.PEFT.LORA.TARGETS", "['vlaue_proj']"], "'vlaue_proj' matches no Linear"),
    (["MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "none", "MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "False"], "Nothing"),
    (["MODEL.MaskDINO.HIDDEN_DIM", "63"], "HIDDEN_DIM is 63"),
    (["MODEL.RESNETS.OUT_FEATURES", "['res2']"], "MaskDINO cannot be built.*'res3'"),
    (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], "Cosine"),
    (["INPUT.DATASET_MAPPER_NAME", "lowrank"], "DATASET_MAPPER_NAME is 'lowrank'"),
    (["MODEL.PEFT.DELTA", "lowrank_d2://maskdino_small.safetensors", "MODEL.WEIGHTS", "x"], "no header of a delta"),
])
def test_what_cannot_be_built_is_found_before_anything_is_written(tmp_path, own, capfd, monkeypatch, opts, part):
    import re

    monkeypatch.setattr("lowrank_d2.engine.run.verify_weights", lambda cfg: None)
    assert run(tmp_path, *own, "--", *opts) == 2
    error = capfd.readouterr().err
    assert re.search(part, error) and error.count("error:") == 1 and not (tmp_path / "out").exists()


def test_a_missing_evaluator_is_found_before_training(tmp_path, own, capfd, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
    monkeypatch.setattr("lowrank_d2.engine.run.check_config", lambda cfg: None)
    words = ["DATASETS.TRAIN", "('cityscapes_instance_train',)", "DATASETS.TEST", "('cityscapes_instance_val',)"]
    assert run(tmp_path, "--", *words) == 2
    assert "pip install cityscapesScripts" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_more_processes_than_images(tmp_path, own, capfd):
    assert run(tmp_path, *own, "--num-processes", "16", "--", "SOLVER.IMS_PER_BATCH", "16") == 2
    assert "16 processes are more than the 11 images of own_train" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_that_were_expected(tmp_path, own, capfd):
    out = tmp_path / "out"
    wrong = "[['segm', 'AP', 99.0, 0.1]]"
    assert run(tmp_path, *own, "--epochs", "1", "--", "TEST.EXPECTED_RESULTS", wrong) == 3
    assert "EXPECTED_RESULTS [['segm', 'AP', 99.0, 0.1]]" in capfd.readouterr().err and (out / "model_final.pth").exists()
    right = "[['segm', 'AP', 0.0, 50.0]]"
    words = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "TEST.EXPECTED_RESULTS"]
    assert run(tmp_path, *own, "--eval-only", "--", *words, right) == 0
    assert run(tmp_path, *own, "--eval-only", "--", *words, wrong) == 3


def test_a_number_of_classes_that_differs(tmp_path, own, capfd):
    assert run(tmp_path, *own, "--", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3") == 2
    assert "NUM_CLASSES is 3, but own_train has 1 classes (thing)" in capfd.readouterr().err


def test_epochs_must_be_positive(tmp_path, own, capfd):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, *own, "--epochs", "0")
    assert stop.value.code == 2 and "'0'" in capfd.readouterr().err


def test_an_output_folder_that_cannot_be(tmp_path, own, capfd):
    (tmp_path / "out").write_text("a file")
    assert run(tmp_path, *own) == 2
    assert "it is a file" in capfd.readouterr().err


def test_two_runs_in_one_folder(tmp_path, own, capfd):
    from lowrank_d2.files import folder_lock

    with folder_lock(tmp_path / "out"):
        assert run(tmp_path, *own) == 2
    assert "in use by process" in capfd.readouterr().err


def test_a_delta_of_other_classes_is_not_evaluated(tmp_path, own, capfd):
    assert run(tmp_path, *own, "--epochs", "1") == 0
    path = Path(own[1])
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 1, "name": "other"}]
    path.write_text(json.dumps(content))
    delta = str(tmp_path / "out" / "delta_final.safetensors")
    assert run(tmp_path, *own, "--eval-only", "--", "MODEL.PEFT.DELTA", delta, "MODEL.WEIGHTS", "any") == 2
    assert "'thing'" in (error := capfd.readouterr().err) and "'other'" in error
