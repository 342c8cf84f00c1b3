"""tools/predict.py: its command line and exit codes."""
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.trainer import LowRankTrainer

from tests.engine.tiny import write_dataset

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests" / "engine" / "small_maskdino.yaml")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("predict_tool", ROOT / "tools" / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def words(tmp_path):
    write_dataset(tmp_path / "images", images=2)
    (tmp_path / "images" / "annotations.json").unlink()
    model = LowRankTrainer.build_model(load_config(CONFIG))
    torch.save({"model": model.state_dict(), "trainer": {"class_names": ["a"] * 80}}, tmp_path / "run.pth")
    return [
        "--config-file", CONFIG, "--input", str(tmp_path / "images"), "--output", str(tmp_path / "out"),
        "--confidence-threshold", "0.0", "MODEL.WEIGHTS", str(tmp_path / "run.pth"),
    ]


def test_pictures_and_json(tool, words, tmp_path, capfd):
    assert run_tool(tool.main, tool.parser(), words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "predictions.json"]
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert f"2 images, {len(records)} instances" in capfd.readouterr().out


def test_a_text_among_the_images_is_exit_code_3(tool, words, tmp_path, capfd):
    (tmp_path / "images" / "notes.txt").write_text("x")
    assert run_tool(tool.main, tool.parser(), words) == 3
    assert "1 files were skipped" in capfd.readouterr().err and (tmp_path / "out" / "1.png").exists()


def test_mistakes_are_exit_code_2(tool, words, capfd):
    assert run_tool(tool.main, tool.parser(), [*words[:7], "1.5", *words[8:]]) == 2
    assert "1.5" in capfd.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run_tool(tool.main, tool.parser(), words[:4])
    assert stop.value.code == 2
