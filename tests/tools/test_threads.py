"""How OpenMP's threads wait in every tool: set before torch is imported, unless the user has chosen."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize("given, expected", [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_torch_finds_the_setting(given, expected):
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    environment = {**kept, **given, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"}
    script = "import os, runpy; runpy.run_path('tools/train_net.py'); print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
    read = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]  # GNU's runtime tells
    assert expected is None or not read or read[0] == expected
