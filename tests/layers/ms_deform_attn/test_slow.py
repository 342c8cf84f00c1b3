"""What takes a compiler's time: the kernels under sanitizers, and wheels with and without the operator."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_d2.layers.ms_deform_attn import build

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.slow


def sanitizer_runtimes():
    """Of GCC, AddressSanitizer's first; what is not installed is no absolute path."""
    commands = ([build.compiler(), f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so"))
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in commands]


def test_the_kernels_are_clean_under_sanitizers(compiled, tmp_path):
    """Addresses and undefined behaviour, for every instruction set of this machine."""
    runtimes = sanitizer_runtimes()
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("the compiler's sanitizers are not installed")
    library = build.build(tmp_path, ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Python's own leaks would drown ours; and something else may be preloaded already.
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "OMP_NUM_THREADS": "3",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    command = [sys.executable, str(Path(__file__).with_name("sanitized.py")), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    calls = int(done.stdout.split()[-1])
    assert calls >= 144 and calls % 144 == 0


def wheel(tmp_path, **environment):
    source = tmp_path / "source"
    if not source.exists():
        source.mkdir()
        shutil.copytree(ROOT / "lowrank_d2", source / "lowrank_d2")
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, source)
    out = tmp_path / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(out), str(source)]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return next(out.iterdir())


def test_a_wheel_has_the_operator_where_it_can_be_compiled_and_is_pure_elsewhere(compiled, tmp_path):
    without = wheel(tmp_path, CXX="/nowhere/c++")
    assert without.name.endswith("-py3-none-any.whl")
    made = wheel(tmp_path)
    assert not made.name.endswith("-any.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(made, installed, "zip")
    code = "from lowrank_d2.layers.ms_deform_attn import backend; print(backend.current().name, backend.PREBUILT)"
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("LOWRANK_D2_OPS", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "prebuilt" and done.stdout.split()[1].startswith(str(installed))
