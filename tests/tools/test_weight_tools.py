"""merge.py and convert_weights.py as commands: what they print, write and return."""
import json
import logging
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.modeling.maskdino.weights import to_upstream
from lowrank_d2.peft import save_delta
from lowrank_d2.peft.delta import read_delta

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
SMALL = f"""
_BASE_: "{ROOT / "tests" / "engine" / "small_maskdino.yaml"}"
MODEL:
  SEM_SEG_HEAD: {{NUM_CLASSES: 2}}
  PEFT: {{METHODS: [], TRAIN: "all"}}
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


FORK = """
USE_ADAPTERS: True
ADAPTER_NUM: 2
SOLVER:
  IGNORE_FIX: ["mask_embed", "class_embed", "bbox_embed"]
"""


@pytest.fixture
def tuned(files, tmp_path):
    """(config, base, checkpoint) of a run of the fork: the original's names, nothing but what was tuned."""
    config, base, _ = files
    config.write_text(SMALL + FORK)
    torch.manual_seed(1)
    model = LowRankTrainer.build_model(load_config(str(config)))
    values = {name: torch.randn_like(value) for name, value in model.named_parameters() if value.requires_grad}
    torch.save({"model": to_upstream(values), "iteration": 9}, tmp_path / "tuned.pth")
    return config, base, tmp_path / "tuned.pth"


def test_a_tuned_checkpoint_of_the_fork_becomes_a_delta(tuned, tmp_path, capsys):
    config, base, checkpoint = tuned
    delta = tmp_path / "fork.safetensors"
    words = ("--to", "delta", "--config-file", config, "--class-names", "ant, bee", checkpoint, delta, "MODEL.WEIGHTS", base)
    assert run("convert_weights", *words) == 0
    assert "2 classes (ant, bee)" in capsys.readouterr().out
    header, stored = read_delta(delta)
    given = to_upstream({name: value for name, value in stored.items() if name != "decoder.label_embedding.weight"})
    expected = torch.load(checkpoint)["model"]
    assert given.keys() == expected.keys() and all(torch.equal(given[name], expected[name]) for name in given)
    assert (header.class_names, header.train, header.methods[0].repeats) == (("ant", "bee"), "embeddings", 2)
    # Applied to the base in a plain config, it gives back the tuned tensors.
    config.write_text(SMALL)
    model = LowRankTrainer.build_model(load_config(str(config), ["MODEL.PEFT.DELTA", str(delta), "MODEL.WEIGHTS", str(base)]))
    model.load_state_dict(torch.load(base)["model"], strict=False)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())


@pytest.mark.parametrize("change, part", [
    (lambda words: words + ["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    (lambda words: [word if word != "ant,bee" else "ant" for word in words], "NUM_CLASSES is 2, but the class names are ant"),
    (lambda words: words + ["ADAPTER_NUM", "1"], "do not fit what this model trains"),
    (lambda words: [word.replace("fork.safetensors", "fork.pth") for word in words], "ends in '.pth'"),
    (lambda words: [word.replace("tuned.pth", "absent.pth") for word in words], "absent.pth do not exist"),
    (lambda words: [word if word != "delta" else "maskdino" for word in words], "--to delta needs --config-file"),
])
def test_mistakes_with_tuned_checkpoints(tuned, tmp_path, capsys, monkeypatch, change, part):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # loggers keep the stdout of the first test of a process
    config, base, checkpoint = map(str, tuned)
    words = ["--to", "delta", "--config-file", config, "--class-names", "ant,bee", checkpoint, str(tmp_path / "fork.safetensors")]
    assert run("convert_weights", *change(words + ["MODEL.WEIGHTS", base])) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("error:") == 1 and "Traceback" not in error
    assert not list(tmp_path.glob("fork.*"))
