"""The counts of the paper's Table 2b, exactly, from the shipped configs (one class, label embedding frozen)."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report, table

ROOT = Path(__file__).resolve().parents[2]
ONE_CLASS = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1", "MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "False"]
BASE = {"maskdino_R50": 52_017_477, "maskdino_SwinL": 222_758_617}
TRAINABLE = {
    "maskdino_R50": {
        "full_head": 28_562_565,
        "decoder": 14_507_141,
        "embeddings": 330_245,
        "adapters_1": 1_124_357,
        "adapters_2": 1_918_469,
        "adapters_3": 2_712_581,
        "adapters_4": 3_506_693,
        "adapter_kappa": 1_124_357,
        "adapter_lambda": 1_124_357,
        "lora_r2": 379_397,
        "lora_r4": 428_549,
        "lora_r8": 526_853,
        "lora_r16": 723_461,
        "lora_r8_adapters_2": 526_853 + 2 * 794_112,
        "dora_r8": 526_853 + 48 * 256,
        "adalora_r8": 330_245 + 48 * 12 * 513,
        "loha_r8": 330_245 + 2 * 196_608,
        "lokr_r8": 330_245 + 48 * (8 * 8 + 8 * (32 + 32)),
    },
    "maskdino_SwinL": {
        "full_head": 27_557_413,
        "decoder": 14_729_189,
        "embeddings": 330_245,
        "adapters_4": 3_506_693,
        "lora_r2": 381_317,
        "lora_r16": 738_821,
    },
}
CASES = [(model, method, number) for model, rows in TRAINABLE.items() for method, number in rows.items()]


def counts_of(model, method, *words):
    files = [f"{ROOT}/configs/mask_dino/{model}.yaml", f"{ROOT}/configs/methods/{method}.yaml"]
    return report(load_config(files, [*ONE_CLASS, *words]))


@pytest.mark.parametrize("model, method, trainable", CASES, ids=lambda value: str(value))
def test_the_counts_of_the_paper(model, method, trainable):
    counts = counts_of(model, method)
    assert (counts.base, counts.trainable) == (BASE[model], trainable)
    traditional = method in ("full_head", "decoder", "embeddings")
    assert counts.added == (0 if traditional else trainable - 330_245)
    assert counts.percent_trainable == pytest.approx(100 * trainable / (BASE[model] + counts.added))


def test_every_method_config_is_counted():
    assert {path.stem for path in (ROOT / "configs/methods").glob("*.yaml")} == set(TRAINABLE["maskdino_R50"])


def test_a_class_costs_513_parameters_and_the_label_embedding_trains_by_key():
    counts = counts_of("maskdino_R50", "embeddings", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3")
    assert counts.base == BASE["maskdino_R50"] + 2 * 513 and counts.trainable == 330_245 + 2 * 257
    with_labels = counts_of("maskdino_R50", "embeddings", "MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "True")
    assert with_labels.trainable == 330_245 + 256


def test_the_components_add_up():
    counts = counts_of("maskdino_R50", "lora_r8")
    assert {name: row["base"] for name, row in counts.by_component.items()} == {
        "backbone": 23_454_912,
        "pixel_decoder": 14_055_424,
        "decoder": 14_507_141,
    }
    assert counts.by_component["pixel_decoder"]["added"] == 6 * 1024 * 8
    shown = table(counts)
    assert "526,853 of 52,214,085 parameters train: 1.009 %" in shown and "14,055,424   49,152" in shown


def test_the_command_line_ends_with_one_json_object():
    files = ["configs/mask_dino/maskdino_R50.yaml", "configs/methods/lora_r4.yaml"]
    command = [sys.executable, "tools/report.py", "--config-file", *files, "--json", *ONE_CLASS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"base", "added", "total", "trainable", "percent_trainable", "by_component"}
    assert sum(result["by_component"].values()) == result["total"]
    assert set(result["by_component"]) == {"backbone", "pixel_decoder", "decoder"}
    assert (result["base"], result["trainable"]) == (52_017_477, 428_549)
    assert result["total"] == result["base"] + result["added"]
