"""What a user has: a shell, a small tree of every dataset, and the weights of a base. Every command is a process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--config-file", "configs/mask_dino/maskdino_small.yaml"]
# Half the base's picture size, and one process for all: what is tested are the commands, not what the model learns.
QUICK = [
    "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu", "SEED", "0",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The `error:` block alone."""
        return self.err[self.err.index("error:") :] if "error:" in self.err else ""


def execute(*words: object, cwd: Path = ROOT, **environment: object) -> Ended:
    """Runs a script of the repository, or python's own options, as a user would."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    variables.update({key: str(value) for key, value in environment.items()})
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600, encoding="utf-8")
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def shell():
    return execute


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> dict[str, str]:
    """The environment of somebody who has a small generated tree of every dataset."""
    root = tmp_path_factory.mktemp("datasets")
    made = execute("datasets/make_mini.py", "--output", root, "--train", 8, "--val", 4, "--size", 64)
    assert made.code == 0, made.err
    return {"DETECTRON2_DATASETS": str(root), "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """Weights of a small base with random numbers, in a file."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    script = (
        "import sys, torch; from safetensors.torch import save_file\n"
        "from lowrank_d2.engine.defaults import load_config; from lowrank_d2.engine.trainer import LowRankTrainer\n"
        "torch.manual_seed(0); model = LowRankTrainer.build_model(load_config(sys.argv[1], ['MODEL.WEIGHTS', '']))\n"
        "save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, sys.argv[2])"
    )
    made = execute("-c", script, SMALL[1], path)
    assert made.code == 0, made.err
    return str(path)
