"""python -m lowrank_d2.env."""
import subprocess
import sys

import detectron2
import torch
from lowrank_d2 import env


def test_the_report_names_versions_runtime_and_operator():
    done = subprocess.run([sys.executable, "-m", "lowrank_d2.env"], capture_output=True, text=True, check=True)
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert torch.__version__ in lines["torch"] and detectron2.__version__ in lines["detectron2"]
    assert f"({env.runtime()})" in lines["detectron2"]
    assert lines["ms_deform_attn"] == "torch: the compiled operator is not built"


def test_the_runtime_is_told_by_detectron2(monkeypatch):
    monkeypatch.setattr(detectron2, "__runtime__", "lite", raising=False)
    assert env.runtime() == "lite"
    monkeypatch.delattr(detectron2, "__runtime__")
    assert env.runtime() == "real"
