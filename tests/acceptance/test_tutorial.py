"""The usual tutorial runs unchanged, on whichever Detectron2 is installed."""

import json
import math

import pytest

from tests.acceptance.conftest import ROOT


@pytest.fixture(scope="module")
def told(shell, places, tmp_path_factory):
    out = tmp_path_factory.mktemp("tutorial")
    script = ROOT / "tests" / "acceptance" / "tutorial.py"
    ended = shell(script, ROOT / "configs/mask_dino/quickstart_lora.yaml", out, **places)
    assert ended.code == 0, ended.err
    return out, json.loads(ended.out.splitlines()[-1])


def test_five_iterations_leave_finite_losses_and_a_checkpoint(told):
    out, _ = told
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in lines if "total_loss" in line)
    assert any("total_loss" in line for line in lines) and (out / "model_final.pth").exists()


def test_only_lora_and_embeddings_train(told):
    _, report = told
    kinds = ("lora_", "class_embed", "mask_embed", "bbox_embed", "label_embedding")
    assert all(any(kind in name for kind in kinds) for name in report["trainable"])
    low_rank = sum("lora_" in name for name in report["trainable"])
    assert low_rank > len(report["trainable"]) - low_rank > 0


def test_the_checkpoint_gives_what_the_trainer_evaluated(told):
    _, report = told
    assert set(report["trained"]) == set(report["again"]) == {"bbox", "segm"}
    for task, metrics in report["again"].items():
        assert "AP-Recyclabel_PlasticBottle" in metrics
        for name, value in metrics.items():
            assert value == pytest.approx(report["trained"][task][name], abs=1e-4, nan_ok=True)


def test_pictures_show_masks_of_the_pictures_size(told):
    out, report = told
    assert len(report["seen"]) == 2 == len(list(out.glob("*.png")))
    for each in report["seen"]:
        height, width, _ = each["image"]
        assert each["masks"][1:] == [height, width] and each["drawn"] == [2 * height, 2 * width, 3]
