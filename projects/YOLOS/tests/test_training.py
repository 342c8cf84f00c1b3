"""Runs of tools/train_net.py on generated data: every method learns, and what it wrote predicts the same anywhere."""
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from lowrank_d2.data.image_files import read_image
from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.run import main, train_parser
from lowrank_d2.engine.weight_files import merge_delta
from lowrank_d2.peft import METHODS, PeftConfig, apply_peft, read_header
from projects.YOLOS.tests.models import CONFIGS
from tests.small_models import generated, trained

RECIPES = ("full", "lora", "adalora", "loha", "lokr")
SHORT = [
    "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "24", "TEST.EVAL_PERIOD", "12",
    "SOLVER.BASE_LR", "0.002", "MODEL.YOLOS.DEPTH", "2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A generated tree of 16 + 4 images, used as $DETECTRON2_DATASETS."""
    return generated(tmp_path_factory, train=16)


@pytest.fixture
def files(monkeypatch, data):
    """files("lora") -> the two configuration files of a small run with the generated data."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    return lambda recipe: [str(CONFIGS / f"yolos_s_{recipe}.yaml"), str(CONFIGS / "mini.yaml")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_falls_with_every_recipe(tmp_path, files, recipe):
    train_all = ["MODEL.PEFT.TRAIN", "all"] if recipe == "full" else []
    lines = trained(files(recipe), tmp_path / "out", *SHORT, *train_all)
    losses = [line["total_loss"] for line in lines]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert {"loss_ce", "loss_bbox", "loss_giou"} <= lines[0].keys() and "bbox/AP" in lines[-1]
    assert ("loss_orthogonality" in lines[0]) == (recipe == "adalora")
    header = read_header(tmp_path / "out" / "delta_final.safetensors")
    assert [method.name for method in header.methods] == ([] if recipe == "full" else [recipe])
    assert header.class_names == ("ball", "box", "wedge", "star", "cross", "blob")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_a_longer_run_goes_on_learning(tmp_path, files, recipe):
    words = ["SOLVER.MAX_ITER", "200", "TEST.EVAL_PERIOD", "100", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]
    losses = [line["total_loss"] for line in trained(files(recipe), tmp_path / "out", *SHORT, *words)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"adapter"}))
def test_low_rank_tensors_alone_learn_a_batch(files, batch, name):
    torch.manual_seed(0)
    words = [*SHORT, "MODEL.PEFT.TRAIN", "all", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "80"]
    model = build_model(load_config(files("full"), words))
    with torch.no_grad():  # heads that say something about the tokens
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    apply_peft(model, PeftConfig((METHODS[name](rank=4),), "none"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 0.02)
    model.train()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.95 * losses[0]


def test_base_and_delta_predict_what_the_run_ended_with(tmp_path, files, data):
    torch.manual_seed(3)
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "6"]
    plain = build_model(load_config(files("full"), [*SHORT, *classes, "MODEL.PEFT.TRAIN", "all"]))
    torch.save({"model": plain.state_dict()}, tmp_path / "base.pth")
    out = tmp_path / "out"
    trained(files("lora"), out, *SHORT, "MODEL.WEIGHTS", str(tmp_path / "base.pth"))
    image = read_image(str(next((data / "source" / "val").iterdir())))[..., ::-1]  # DefaultPredictor takes BGR

    def predict(*words):
        return DefaultPredictor(load_config(str(out / "config.yaml"), words))(image)["instances"]

    final = predict("MODEL.WEIGHTS", str(out / "model_final.pth"))
    shipped = predict("MODEL.PEFT.DELTA", str(out / "delta_final.safetensors"), "MODEL.PEFT.METHODS", "[]")
    base = predict("MODEL.PEFT.METHODS", "[]")
    merge_delta(load_config(str(out / "config.yaml")), out / "delta_final.safetensors", tmp_path / "merged.safetensors")
    merged = predict("MODEL.WEIGHTS", str(tmp_path / "merged.safetensors"), "MODEL.PEFT.METHODS", "[]")
    assert len(final) == 20 and final.image_size == image.shape[:2]
    for other in (shipped, merged):
        torch.testing.assert_close(other.pred_boxes.tensor, final.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(other.scores, final.scores, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(base.scores, final.scores, atol=1e-4)


def test_a_frozen_class_layer_for_other_classes_ends_the_run_before_it_begins(tmp_path, files, capsys):
    torch.manual_seed(0)
    coco = build_model(load_config(files("full"), [*SHORT, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "80", "MODEL.PEFT.TRAIN", "all"]))
    torch.save({"model": coco.state_dict()}, tmp_path / "base.pth")
    words = [*SHORT, "MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.PEFT.TRAIN", "none", "OUTPUT_DIR", str(tmp_path / "out")]
    assert run_tool(main, train_parser(""), ["--config-file", *files("lora"), *words]) == 2
    message = capsys.readouterr().err
    assert "2 parameters" in message and "class_embed.layers.2.weight (7, 64)" in message and "'embeddings', 'all'." in message
    assert not (tmp_path / "out" / "metrics.json").exists()
