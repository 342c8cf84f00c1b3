"""The command lines of data: exit codes, the last line, pictures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from lowrank_d2.data.mapper import LowRankMapper
from lowrank_d2.engine.config_file import read_settings
from lowrank_d2.engine.defaults import load_config, run_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(capsys):
    def call(script: str, *words: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = run_tool(module.main, module.parser(), [str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_check_dataset_on_a_clean_file(run, own):
    own.save()
    code, out, _ = run("tools/check_dataset.py", "--json", own.json, "--images", own.images, "--json-report")
    report = json.loads(out.strip().splitlines()[-1])
    assert code == 0 and report["problems"] == [] and report["images"] == 4 and report["classes"] == ["ant", "bee"]


def test_check_dataset_on_a_broken_file(run, own):
    own.annotations[1]["category_id"] = 77
    own.annotations[2]["bbox"] = [5, 5, 0, 7]
    own.save()
    code, out, err = run("tools/check_dataset.py", "--json", own.json, "--images", own.images, "--json-report")
    *table, last = out.strip().splitlines()
    report = json.loads(last)
    assert code == 2 and [problem["kind"] for problem in report["problems"]] == [
        "unknown-category",
        "empty",
        "empty-image",
    ]
    assert "category_id 77" in "\n".join(table) and "Traceback" not in out + err
    assert err.count("error: ") == 1 and str(own.json) in err and "category ids that are not in categories" in err


def test_warnings_alone_leave_a_dataset_usable(run, own):
    own.annotations[2]["bbox"] = [5, 5, 0, 7]
    own.save()
    code, out, _ = run("tools/check_dataset.py", "--json", own.json, "--images", own.images)
    assert code == 0 and "warning" in out


@pytest.mark.parametrize(
    "words, expected", [(("--dataset", "ndd20_trian"), "ndd20_train"), (("--json", "a.json"), "--images")]
)
def test_mistakes_of_the_command_line(run, words, expected):
    code, _, err = run("tools/check_dataset.py", *words)
    assert (
        code == 2 and err.strip().splitlines()[-1].startswith("error: ") and expected in err and "Traceback" not in err
    )


def test_a_file_without_usable_objects_and_one_that_is_no_json(run, own):
    own.annotations.clear()
    own.save()
    code, out, _ = run("tools/check_dataset.py", "--json", own.json, "--images", own.images)
    assert code == 2 and "nothing to train on" in " ".join(out.replace("│", " ").split())
    own.json.write_text("{")
    code, out, _ = run("tools/check_dataset.py", "--json", own.json, "--images", own.images, "--json-report")
    assert code == 2 and json.loads(out.strip().splitlines()[-1])["error"] == 1


def test_pictures_do_not_replace_the_images(run, own):
    own.save()
    before = (own.images / "1.png").read_bytes()
    words = ["--json", own.json, "--images", own.images, "--output"]
    code, _, err = run("tools/visualize.py", *words, own.images)
    assert code == 2 and "would be overwritten" in err and (own.images / "1.png").read_bytes() == before
    code, _, err = run("tools/visualize.py", *words, own.json)
    assert code == 2 and "is a file" in err


def test_check_dataset_of_a_missing_tree(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    code, out, _ = run("tools/check_dataset.py", "--dataset", "wixray_train", "--json-report")
    assert code == 2 and "nowhere" in json.loads(out.strip().splitlines()[-1])["problems"][0]["what"]


def test_visualize_draws_the_objects(run, own, tmp_path):
    own.save()
    code, out, _ = run(
        "tools/visualize.py", "--json", own.json, "--images", own.images, "--output", tmp_path / "out", "--limit", 2
    )
    assert code == 0 and "2 pictures" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "2.png"]
    before, after = (
        np.asarray(Image.open(folder / "1.png").convert("RGB")).astype(int) for folder in (own.images, tmp_path / "out")
    )
    changed = np.abs(after - before).sum(axis=2) > 30
    assert changed[10:16, 7:13].any() and not changed[:, 42:].any()


def test_visualize_knows_the_registered_datasets(run, registered, tmp_path):
    for name in ("cityscapes_instance_val", "ndd20_val"):
        code, _, _ = run("tools/visualize.py", "--dataset", name, "--output", tmp_path / name, "--limit", 3)
        assert code == 0 and len(list((tmp_path / name).iterdir())) == 3
    assert run("tools/visualize.py", "--dataset", "ndd20_val", "--output", tmp_path, "--limit", 0)[0] == 2


def test_make_mini_prints_the_folders(run, tmp_path):
    code, out, _ = run(
        "datasets/make_mini.py",
        "--output",
        tmp_path,
        "--datasets",
        "source",
        "wixray",
        "--train",
        2,
        "--val",
        1,
        "--size",
        96,
    )
    assert code == 0 and out.split() == [str(tmp_path / "source"), str(tmp_path / "wixray")]
    assert Image.open(tmp_path / "source/train/000000.jpg").size == (96, 96)
    assert run("datasets/make_mini.py", "--output", tmp_path, "--datasets", "source", "--train", 0)[0] == 2


@pytest.mark.parametrize("name", ["ndd20", "zerowaste", "wixray", "cityscapes", "source"])
def test_the_config_of_a_dataset_fits_it(name, registered):
    cfg = load_config([str(ROOT / "configs/mask_dino/maskdino_R50.yaml"), str(ROOT / f"configs/datasets/{name}.yaml")])
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(MetadataCatalog.get(dataset).thing_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert list(cfg.SOLVER.STEPS) == sorted(cfg.SOLVER.STEPS) and cfg.SOLVER.STEPS[-1] < cfg.SOLVER.MAX_ITER
    assert all(side % 32 == 0 for side in cfg.INPUT.CANVAS)
    LowRankMapper(cfg)
    assert "MODEL.WEIGHTS" not in {
        setting.key for setting in read_settings(str(ROOT / f"configs/datasets/{name}.yaml"))
    }
