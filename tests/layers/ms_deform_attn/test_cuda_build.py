"""The CUDA library without a GPU: it compiles for every architecture, spills no register, and loads."""
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lowrank_d2.layers.ms_deform_attn import backend, build_cuda

# Registers that let two, three or four blocks of 256 threads run on a multiprocessor of 65,536.
TWO_BLOCKS, THREE_BLOCKS, FOUR_BLOCKS = 128, 80, 64


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the library, and what the assembler says of each kernel."""
    missing = build_cuda.obstacle()
    if missing:
        pytest.skip(f"the CUDA library cannot be compiled here: {missing}")
    folder = tmp_path_factory.mktemp("cuda")

    def run(command):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    commands = [build_cuda.compile_command(source, ("-Xptxas", "-v")) for source in build_cuda.sources()]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(run, commands))
    run(build_cuda.link_command())
    return folder, "\n".join(reports)


def kernels(report):
    """(kernel, type, channels at a time, architecture) -> (registers, bytes spilled)."""
    found = {}
    pattern = (
        r"entry function '_ZN10lowrank_d24cuda\d+([a-z_]+)_kernel"
        r"I(f|d|N3c10\d+[A-Za-z]+?(?:16)?E)(?:Li(\d)E)?E.*' for '(sm_\d+)'"
        r"[^']*?(\d+) bytes spill stores, (\d+) bytes spill loads\n[^']*?Used (\d+) registers"
    )
    types = {"f": "float32", "d": "float64", "N3c104HalfE": "float16", "N3c108BFloat16E": "bfloat16"}
    for kernel, type_, channels, architecture, stores, loads, registers in re.findall(pattern, report):
        key = kernel, types[type_], int(channels or 1), architecture
        found[key] = int(registers), int(stores) + int(loads)
    return found


def test_no_kernel_spills_a_register(built):
    found = kernels(built[1])
    assert len(found) == 2 * (4 * 4 + 2 * 3)  # two architectures; four kernels of four types, two of three for vectors
    assert {architecture for *_, architecture in found} == {"sm_80", "sm_90"}
    for key, (registers, spilled) in found.items():
        assert spilled == 0, f"{key} spills"
        kernel, type_, channels, _ = key
        few = FOUR_BLOCKS if kernel != "backward" or channels == 4 else THREE_BLOCKS if channels == 8 else TWO_BLOCKS
        assert registers <= few or (kernel == "backward" and type_ == "float64"), f"{key} takes {registers} registers"


def test_the_library_loads_into_a_pytorch_without_cuda(built):
    """It registers kernels for CUDA and leaves those for the CPU alone."""
    program = f"""
import ctypes, torch
from lowrank_d2.layers.ms_deform_attn import ops
path = {str(built[0] / build_cuda.LIBRARY)!r}
torch.ops.load_library(path)
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert ctypes.CDLL(path).lowrank_d2_ops_abi() == ops.ABI
assert all(has(name, "CUDA") and not has(name, "CPU") for name in (ops.NAME, ops.BACKWARD))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch believes in a GPU; returns what sets its compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return lambda *version: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: version)


def test_it_is_compiled_once_and_then_found(built, gpu, tmp_path, monkeypatch):
    compiled = []

    def copy_instead(folder):
        compiled.append(folder)
        return Path(shutil.copy(built[0] / build_cuda.LIBRARY, folder))

    monkeypatch.setattr(build_cuda, "_compile", copy_instead)
    monkeypatch.setenv("LOWRANK_D2_CACHE", str(tmp_path))
    monkeypatch.setenv("LOWRANK_D2_OPS", "jit")
    gpu(9, 0)
    for _ in range(2):
        chosen = backend.current_on_cuda.__wrapped__()
        assert chosen.name == "jit" and chosen.library.parent.parent == tmp_path
    assert len(compiled) == 1 and chosen.instruction_set() is None


def test_an_old_gpu_keeps_the_form_in_pytorch(gpu):
    gpu(7, 5)
    chosen = backend.current_on_cuda.__wrapped__()
    assert chosen.library is None and "compute capability 7.5" in chosen.reason


def test_a_library_is_known_by_its_side_file(tmp_path):
    library = tmp_path / build_cuda.LIBRARY
    assert "cannot be read" in build_cuda.verify(library)
    library.write_bytes(b"another library")
    library.with_suffix(".json").write_text("{}")
    assert "other sources" in build_cuda.verify(library)


def test_without_nvcc_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(build_cuda.shutil, "which", lambda *args, **kwargs: None)
    assert "CUDA toolkit" in build_cuda.obstacle()
