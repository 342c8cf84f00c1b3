"""The command lines on generated data: train with boxes alone, resume, predict, count, leave branches out."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from lora_detr_cases import project_folder

from lowrank_d2.data import mini
from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.run import main, train_parser

CONFIGS = project_folder() / "configs"
TOOLS = project_folder().parents[1] / "tools"
FILES = ["deformable_detr_pp_R50_lora3", "relation_detr_R50_lora1"]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """The generated data set `source` as a COCO file without masks: (json, folder of its images)."""
    root = tmp_path_factory.mktemp("datasets")
    mini.build(root, "source", train=12, val=4, height=64)
    file = next(path for path in (root / "source").rglob("*.json") if "train" in path.name)
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        del row["segmentation"]
    alone = root / "boxes.json"
    alone.write_text(json.dumps(content))
    name = content["images"][0]["file_name"]
    image = next(path for path in (root / "source").rglob(Path(name).name) if "train" in str(path))
    return alone, Path(str(image).removesuffix(name))


def options(name, *words):
    files = [str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "mini.yaml")]
    return ["--config-file", *files, *words]


def train(name, output, boxes, *words):
    own = ["--train-json", str(boxes[0]), "--train-images", str(boxes[1])]
    short = "MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 0 SOLVER.CHECKPOINT_PERIOD 8".split()
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    flags = [word for word in words if word.startswith("--")]
    pairs = [word for word in words if not word.startswith("--")]
    given = [*own, *flags, *short, *sizes, "OUTPUT_DIR", str(output), *pairs]
    return run_tool(main, train_parser(""), options(name, *given))


def tool(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("name", FILES)
def test_a_run_on_boxes_alone_from_training_to_predictions(tmp_path, boxes, name, monkeypatch):
    out = tmp_path / "out"
    assert train(name, out, boxes, "SOLVER.MAX_ITER", "12") == 0
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(12))
    assert sum(line["total_loss"] for line in lines[-4:]) < sum(line["total_loss"] for line in lines[:4])
    assert "bbox/AP" in lines[-1]

    assert train(name, out, boxes, "--resume", "SOLVER.MAX_ITER", "14") == 0
    resumed = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in resumed] == list(range(14))

    final, plain = out / "model_final.pth", tmp_path / "plain.safetensors"
    stored = torch.load(final, weights_only=False)["model"]
    assert any(".branches." in key for key in stored)
    config = ["--config-file", str(out / "config.yaml")]
    assert tool("merge", monkeypatch, *config, "--output", str(plain), "MODEL.WEIGHTS", str(final)) == 0
    image = str(next(boxes[1].rglob("*.[jp][pn]g")))
    results = []
    for weights, k in ((final, "[6, 4, 2]" if "3" in name else "[6]"), (plain, "None")):
        target = tmp_path / f"predicted_{weights.stem}"
        words = ["MODEL.WEIGHTS", str(weights), "MODEL.LORA_DETR.K", k]
        places = ["--input", image, "--output", str(target), "--confidence-threshold", "0"]
        assert tool("predict", monkeypatch, *config, *places, *words) == 0
        rows = json.loads((target / "predictions.json").read_text())
        assert len(rows) > 10 and "segmentation" not in rows[0]
        results.append([(row["bbox"], row["score"], row["category_id"]) for row in rows])
    assert results[0] == results[1]


def test_the_report_counts_branches_as_added(monkeypatch, capsys):
    assert tool("report", monkeypatch, "--config-file", str(CONFIGS / "deformable_detr_R50_lora3.yaml"), "--json") == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["added"] == 2_654_208 and counts["trainable"] == 49_917_081


@pytest.mark.parametrize("words, part", [
    (["MODEL.LORA_DETR.K", "[]"], "MODEL.LORA_DETR.K is []"),
    (["MODEL.LORA_DETR.K", "[41]"], "at most 40"),
    (["MODEL.LORA_DETR.RANK", "0"], "MODEL.LORA_DETR.RANK is 0"),
    (["MODEL.LORA_DETR.RULE", "mine"], "'released', 'paper'"),
])
def test_bad_settings_end_before_the_first_iteration(tmp_path, boxes, words, part, capsys):
    assert train("deformable_detr_R50_lora3", tmp_path / "out", boxes, *words) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_without_branches_and_without_a_delta_there_is_nothing_to_merge(tmp_path, monkeypatch, capsys, small_model):
    model = small_model("deformable_detr_R50")
    torch.save({"model": model.state_dict()}, tmp_path / "plain.pth")
    words = ["--output", str(tmp_path / "out.pth"), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "plain.pth")]
    assert tool("merge", monkeypatch, *options("deformable_detr_R50", *words)) == 2
    assert "nothing to merge" in capsys.readouterr().err
