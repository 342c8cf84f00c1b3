"""python -m lowrank_d2.env."""
import os
import subprocess
import sys

import detectron2
import torch
from lowrank_d2 import env


def test_the_report_names_versions_runtime_and_operator():
    environment = {**os.environ, "LOWRANK_D2_OPS": "torch"}
    command = [sys.executable, "-m", "lowrank_d2.env"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert torch.__version__ in lines["torch"] and detectron2.__version__ in lines["detectron2"]
    assert f"({env.runtime()})" in lines["detectron2"]
    assert lines["ms_deform_attn"] == "torch: LOWRANK_D2_OPS=torch asks for it"
    on_cuda = lines["ms_deform_attn"] if torch.cuda.is_available() else "torch: PyTorch sees no GPU"
    assert lines["ms_deform_attn_cuda"] == on_cuda
    assert lines["compilers"].startswith("C++ ") and ", nvcc " in lines["compilers"]


def test_a_wrong_choice_of_the_operator_is_reported_not_raised(monkeypatch):
    monkeypatch.setenv("LOWRANK_D2_OPS", "fastest")
    monkeypatch.setattr(env.backend, "current", env.backend.current.__wrapped__)
    assert env.operator(env.backend.current) == "none: LOWRANK_D2_OPS is 'fastest'. Set it to prebuilt, jit or torch, or unset it."


def test_the_runtime_is_told_by_detectron2(monkeypatch):
    monkeypatch.setattr(detectron2, "__runtime__", "lite", raising=False)
    assert env.runtime() == "lite"
    monkeypatch.delattr(detectron2, "__runtime__")
    assert env.runtime() == "real"
