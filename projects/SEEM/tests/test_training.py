"""Runs of tools/train_net.py on generated data: they learn, and what they wrote predicts the same anywhere."""
import json

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from lowrank_d2.data.image_files import read_image
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.predict import predict_files
from lowrank_d2.engine.weight_files import merge_delta
from lowrank_d2.errors import ConfigError
from projects.SEEM.tests.models import CONFIGS, METHODS
from tests.small_models import generated, trained

CLASSES = ["ball", "box", "wedge", "star", "cross", "blob"]
SHORT = [
    "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "10", "SOLVER.IMS_PER_BATCH", "4",
    "TEST.EVAL_PERIOD", "10", "SEED", "3", "MODEL.PEFT.DELTA_DTYPE", "float32",
]
NARROW = ["MODEL.SEEM.FOCAL.EMBED_DIM", "16", "MODEL.SEEM.FOCAL.DEPTHS", "[1,1,1,1]", "MODEL.SEEM.DEC_LAYERS", "2"]

pytestmark = pytest.mark.usefixtures("vocabulary")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A generated tree of 16 + 4 images, used as $DETECTRON2_DATASETS."""
    return generated(tmp_path_factory, train=16)


@pytest.fixture
def files(monkeypatch, data):
    """files("lora_r4") -> the configuration files of a small run with the generated data."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    return lambda *methods: [str(CONFIGS / "seem_focalt.yaml"), *(str(METHODS / f"{m}.yaml") for m in methods), str(CONFIGS / "mini.yaml")]


def train(files, output, *words):
    """The losses of a run."""
    lines = trained(files, output, *SHORT, *words)
    assert "segm/AP" in lines[-1]
    return [line["total_loss"] for line in lines]


def test_a_tiny_focalnet_learns(tmp_path, files):
    words = ["SOLVER.MAX_ITER", "20", "TEST.EVAL_PERIOD", "20", "SOLVER.BASE_LR", "0.001", "MODEL.SEEM.DEC_LAYERS", "2"]
    losses = train(files(), tmp_path / "out", *words)
    assert sum(losses[-4:]) < 0.92 * sum(losses[:4])


@pytest.mark.slow
def test_a_longer_run_goes_on_learning(tmp_path, files):
    losses = train(files(), tmp_path / "out", "SOLVER.MAX_ITER", "120", "TEST.EVAL_PERIOD", "120")
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("method", ["lora_r4", "adapters_1"])
def test_base_and_delta_predict_what_the_run_ended_with(tmp_path, files, data, method):
    torch.manual_seed(3)
    plain = build_model(load_config(files(), [*SHORT, *NARROW, "MODEL.CLASS_NAMES", str(CLASSES)]))
    torch.save({"model": plain.state_dict()}, tmp_path / "base.pth")
    out, base = tmp_path / "out", ["MODEL.WEIGHTS", str(tmp_path / "base.pth")]
    train(files(method), out, *NARROW, *base)
    image = read_image(str(next((data / "source" / "val").iterdir())))[..., ::-1]  # DefaultPredictor takes BGR

    def predict(*words):
        return DefaultPredictor(load_config(str(out / "config.yaml"), words))(image)["instances"]

    final = predict("MODEL.WEIGHTS", str(out / "model_final.pth"))
    delta = ["MODEL.PEFT.DELTA", str(out / "delta_final.safetensors"), "MODEL.PEFT.METHODS", "[]"]
    others = [predict(*base, *delta)]
    if method.startswith("lora"):
        merge_delta(load_config(str(out / "config.yaml"), base), delta[1], tmp_path / "merged.safetensors")
        others.append(predict("MODEL.WEIGHTS", str(tmp_path / "merged.safetensors"), "MODEL.PEFT.METHODS", "[]"))
    for other in others:
        torch.testing.assert_close(other.scores, final.scores, rtol=1e-4, atol=1e-5)
        assert (other.pred_masks != final.pred_masks).float().mean() < 1e-3
    assert not torch.allclose(predict(*base, "MODEL.PEFT.METHODS", "[]").scores, final.scores, atol=1e-4)


def test_words_of_ones_own(tmp_path, files, data):
    torch.manual_seed(3)
    cfg = load_config(files(), [*SHORT, *NARROW, "MODEL.CLASS_NAMES", str(CLASSES)])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "base.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "base.pth")
    images, out = str(data / "source" / "val"), tmp_path / "out"
    summary = predict_files(cfg, images, str(out), threshold=0.0, words=["dolphin", "calf"])
    records = json.loads((out / "predictions.json").read_text())
    assert summary.images == 4 and len(records) == summary.instances == 4 * 40  # 20 queries, two words
    assert {(r["category_id"], r["category_name"]) for r in records} == {(1, "dolphin"), (2, "calf")}
    cfg.MODEL.CLASS_NAMES = ["whale"]
    predict_files(cfg, images, str(out), threshold=0.0)
    assert {r["category_name"] for r in json.loads((out / "predictions.json").read_text())} == {"whale"}
    with pytest.raises(ConfigError, match="The class '' has no words"):
        predict_files(cfg, images, str(out), words=["calf", "", "cow"])
    with pytest.raises(ConfigError, match="'calf' and 'Calf' have the same words"):
        predict_files(cfg, images, str(out), words=["calf", "Calf"])
    with pytest.raises(ConfigError, match="--classes names no class"):
        predict_files(cfg, images, str(out), words=[""])
