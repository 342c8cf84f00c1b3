"""Runs of the tools on generated data: both models learn, and what they wrote predicts the same anywhere."""
import json

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from lowrank_d2.data.image_files import read_image
from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.predict import predict_files
from lowrank_d2.engine.run import main, train_parser
from projects.LORS.tests.models import CONFIGS
from tests.small_models import generated, trained

NAMES = ("adamixer_R50", "lors_R50")
SHORT = [
    "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "20",
    "SOLVER.WARMUP_ITERS", "4", "TEST.EVAL_PERIOD", "0", "MODEL.ADAMIXER.NUM_STAGES", "2",
    "MODEL.ADAMIXER.EMBED_DIM", "32",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A generated tree of 12 + 4 images, used as $DETECTRON2_DATASETS."""
    return generated(tmp_path_factory, train=12)


@pytest.fixture
def files(monkeypatch, data):
    """files("lors_R50") -> the two configuration files of a small run with the generated data."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    return lambda name: [str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "mini.yaml")]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_and_the_run_predicts_what_its_file_says(tmp_path, files, data, name):
    out = tmp_path / "out"
    lines = trained(files(name), out, *SHORT)
    losses = [line["total_loss"] for line in lines]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    kinds = ("loss_cls", "loss_bbox", "loss_iou", "pos_acc")
    assert lines[0].keys() >= {f"stage{i}_{kind}" for i in (0, 1) for kind in kinds}
    assert losses[0] == pytest.approx(sum(value for key, value in lines[0].items() if "_loss_" in key), rel=1e-5)
    assert "bbox/AP" in lines[-1]

    image = next((data / "source" / "val").iterdir())
    weights = ("MODEL.WEIGHTS", str(out / "model_final.pth"))
    predictor = DefaultPredictor(load_config(str(out / "config.yaml"), weights))
    found = predictor(read_image(str(image))[..., ::-1])["instances"]  # DefaultPredictor takes BGR
    assert len(found) == 20
    predict_files(load_config(str(out / "config.yaml"), weights), str(image), str(tmp_path / "shown"), 0.0)
    results = json.loads((tmp_path / "shown" / "predictions.json").read_text())
    assert (tmp_path / "shown" / f"{image.stem}.png").is_file()
    scores = sorted((result["score"] for result in results), reverse=True)
    assert scores == pytest.approx(found.scores.tolist(), abs=1e-4)
    assert {result["category_name"] for result in results} <= {"ball", "box", "wedge", "star", "cross", "blob"}


def test_own_data_decides_the_classes(tmp_path, files, data):
    annotations = data / "source" / "annotations" / "instances_train.json"
    images = data / "source" / "train"
    out = tmp_path / "out"
    own = ["--train-json", str(annotations), "--train-images", str(images)]
    lines = trained(files("lors_R50"), out, *own, *SHORT, "SOLVER.MAX_ITER", "2")
    assert len(lines) == 2
    state = torch.load(out / "model_final.pth", weights_only=False)["model"]
    assert state["decoder.stages.1.heads.class_embed.weight"].shape == (6, 32)
    shared = [name for name in state if ".shared." in name]
    assert len(shared) == 2 * 2 * 2 + 1  # two sampling groups, two kinds, weight and bias; the projection


def test_a_resumed_run_goes_on_where_it_was(tmp_path, files):
    out = tmp_path / "whole"
    whole = trained(files("lors_R50"), out, *SHORT, "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3")
    again = torch.load(out / "model_final.pth", weights_only=False)["model"]
    (out / "last_checkpoint").write_text("model_0000002.pth")
    (out / "model_final.pth").unlink()
    words = ["--config-file", str(out / "config.yaml"), "--resume"]
    assert run_tool(main, train_parser(""), words) == 0
    resumed = torch.load(out / "model_final.pth", weights_only=False)["model"]
    assert [name for name in again if not torch.equal(again[name], resumed[name])] == []
    assert len(whole) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_learned(small_config, batch, name):
    torch.manual_seed(0)
    model = build_model(small_config(name, {
        "MODEL.RESNETS.NORM": "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS": 32, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    }))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    model.train()
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = sum(model(batch).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.7 * losses[0]
