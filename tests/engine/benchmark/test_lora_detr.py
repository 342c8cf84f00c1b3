"""The cost of branches, measured on a small model."""
from pathlib import Path

from lowrank_d2.engine.benchmark import lora_detr

CONFIGS = Path(__file__).resolve().parents[3] / "projects" / "LoRA-DETR" / "configs"


def test_every_number_of_branches_is_compared_with_none(monkeypatch):
    monkeypatch.setattr(lora_detr, "SIZE", 64)
    monkeypatch.setattr(lora_detr, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(lora_detr.torch, "set_num_threads", lambda count: None)
    files = [str(CONFIGS / "deformable_detr_R50_lora1.yaml"), str(CONFIGS / "mini.yaml")]
    result = lora_detr.run(files, rounds=1)
    assert list(result["branches"]) == ["1", "2", "3"]
    seconds = result["seconds"]
    for count, ratio in result["branches"].items():
        assert abs(ratio - seconds[f"training_{count}"] / seconds["training_0"]) < 0.05 * ratio + 0.02
    assert result["evaluation"] > 0 and seconds["evaluation_3"] > 0
