"""The quickstart and the base that comes with the library."""
import json
from pathlib import Path

import cv2
import pytest
from detectron2.utils.file_io import PathManager
from lowrank_d2.data import mini
from lowrank_d2.engine.checkpoint import LowRankCheckpointer
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.evaluators import headline_ap
from lowrank_d2.engine.quickstart import quickstart
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.errors import DeltaError
from lowrank_d2.peft import read_header

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]


def test_a_short_quickstart_leaves_what_it_promises(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # restored afterwards; the quickstart sets its own
    result = quickstart(tmp_path, SHORT, pictures=2, train=8, val=4)
    assert set(result) == {
        "ap_base", "ap_embeddings_only", "ap_lora", "trainable", "percent_trainable", "delta_bytes", "out",
    }
    assert json.loads(json.dumps(result)) == result
    assert result["trainable"] == 97_872 and result["percent_trainable"] == pytest.approx(4.664, abs=1e-3)
    delta = tmp_path / "lora" / "delta_final.safetensors"
    assert result["delta_bytes"] == delta.stat().st_size < 500_000
    header = read_header(str(delta))
    assert header.num_classes == 12 and header.class_names[0] == "Recyclabel_PlasticBottle"
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 2
    height, width, _ = cv2.imread(str(pictures[0])).shape
    assert (height, width) == (2 * 160 + 28, 3 * (2 * 160 + 8))  # three panels, magnified twice, with margins
    shown = capsys.readouterr().out
    assert "LoRA and embeddings" in shown and "97,872" in shown and "Average Precision" not in shown
    delta.unlink()  # a second quickstart trains nothing: this file stays away
    with pytest.raises(DeltaError, match="delta_final"):
        quickstart(tmp_path, SHORT, pictures=2, train=8, val=4)
    assert capsys.readouterr().out.count("from iteration 2 of an earlier run") == 2


def test_the_shipped_base_knows_its_domain(tmp_path, monkeypatch):
    mini.build(tmp_path, "source", train=1, val=60, seed=1)  # pictures that it was not trained on
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config([str(ROOT / "configs/mask_dino/maskdino_small.yaml")], words)
    assert Path(PathManager.get_local_path(cfg.MODEL.WEIGHTS)).stat().st_size < 12e6
    model = LowRankTrainer.build_model(cfg)
    LowRankCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert headline_ap(LowRankTrainer.test(cfg, model)) > 45
