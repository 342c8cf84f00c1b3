"""merge.py and convert_weights.py as commands: what they print, write and return."""
import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.peft import save_delta

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SMALL = """
MODEL:
  META_ARCHITECTURE: "MaskDINO"
  DEVICE: "cpu"
  BACKBONE: {NAME: "build_resnet_backbone", FREEZE_AT: 0}
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 8
  SEM_SEG_HEAD:
    NAME: "MaskDINOHead"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    NUM_CLASSES: 2
    CONVS_DIM: 32
    MASK_DIM: 32
    NORM: "GN"
    TRANSFORMER_ENC_LAYERS: 1
  MaskDINO: {HIDDEN_DIM: 32, DEC_LAYERS: 1, NUM_OBJECT_QUERIES: 8, TEST: {SEMANTIC_ON: False, INSTANCE_ON: True}}
"""


def run(tool, *words):
    names = runpy.run_path(str(TOOLS / f"{tool}.py"))
    return run_tool(names["main"], names["parser"](), [str(word) for word in words])


@pytest.fixture
def files(tmp_path):
    """(config, base, delta) of a LoRA whose update is not zero."""
    config, base, delta = tmp_path / "small.yaml", tmp_path / "base.pth", tmp_path / "delta.safetensors"
    config.write_text(SMALL)
    torch.manual_seed(0)
    words = ["MODEL.PEFT.METHODS", "['lora']", "MODEL.PEFT.TRAIN", "embeddings"]
    torch.save({"model": LowRankTrainer.build_model(load_config(str(config))).state_dict()}, base)
    model = LowRankTrainer.build_model(load_config(str(config), words))
    model.load_state_dict(torch.load(base)["model"])
    torch.nn.init.normal_(model.decoder.layers[0].self_attn.q_proj.lora_B)
    save_delta(model, delta, class_names=["ant", "bee"])
    return config, base, delta


def test_merge_then_convert(files, tmp_path, capsys):
    config, base, delta = files
    merged, upstream = tmp_path / "new" / "merged.safetensors", tmp_path / "upstream.safetensors"
    words = ("--config-file", config, "--delta", delta, "--output", merged, "MODEL.WEIGHTS", base)
    assert run("merge", *words) == 0
    assert "2 classes (ant, bee)" in capsys.readouterr().out
    with safe_open(str(merged), framework="pt") as file:
        assert json.loads(file.metadata()["class_names"]) == ["ant", "bee"]
        before = torch.load(base)["model"]
        changed = [name for name in file.keys() if not torch.equal(file.get_tensor(name), before[name])]
    assert changed == ["decoder.layers.0.self_attn.q_proj.weight"]
    assert run("convert_weights", "--to", "maskdino", merged, upstream) == 0
    with safe_open(str(upstream), framework="pt") as file:
        assert f"{upstream}: {len(list(file.keys()))} tensors" in capsys.readouterr().out
    back = tmp_path / "back.safetensors"
    assert run("convert_weights", "--to", "lowrank_d2", upstream, back) == 0
    with safe_open(str(merged), framework="pt") as ours, safe_open(str(back), framework="pt") as again:
        assert set(again.keys()) == set(ours.keys())
        assert all(torch.equal(again.get_tensor(name), ours.get_tensor(name)) for name in ours.keys())


def test_a_users_mistake_is_exit_code_2_and_one_message(files, tmp_path, capsys):
    config, base, delta = files
    target = tmp_path / "merged.safetensors"
    delta.write_bytes(delta.read_bytes()[:500])
    words = ("--config-file", config, "--delta", delta, "--output", target, "MODEL.WEIGHTS", base)
    assert run("merge", *words) == 2
    error = capsys.readouterr().err
    assert f"error: {delta} (500 bytes) is no readable safetensors file" in error and "Traceback" not in error
    assert run("convert_weights", "--to", "maskdino", tmp_path / "absent.pth", target) == 2
    assert "do not exist" in capsys.readouterr().err and not target.exists()
