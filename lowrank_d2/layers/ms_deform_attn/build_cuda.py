"""Compiles the operator for CUDA, with the nvcc that is found; as `build` does for the CPU, by the same functions.

Like it without an import of torch, for setup.py.

PyTorch's own machinery for extensions is not asked: it needs a PyTorch with CUDA of nvcc's version. The library carries
its CUDA runtime with it and runs on every driver that knows nvcc's version.
"""
import hashlib
import json
import os
import platform
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lowrank_d2.layers.ms_deform_attn import build as cpu
from lowrank_d2.layers.ms_deform_attn.build import BuildError

LIBRARY = "ms_deform_attn_cuda.so"
SOURCES = Path(__file__).with_name("csrc") / "cuda"
FLAGS = ("-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA")
# Code for Ampere and Hopper; what comes later translates Hopper's when it first runs.
ARCHITECTURES = ("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90")
OLDEST = (8, 0)  # compute capability


def compiler() -> str | None:
    """Path of nvcc: on the PATH, in $CUDA_HOME, or where CUDA is usually installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [None, *(str(Path(home) / "bin") for home in homes if home)]
    return next((found for place in places if (found := shutil.which("nvcc", path=place))), None)


def obstacle() -> str | None:
    """What is missing for a build, with the remedy; None when nothing is."""
    if compiler() is None:
        return "nvcc was not found (install NVIDIA's CUDA toolkit, or put its nvcc on the PATH)"
    return cpu.obstacle()


def torch_has_cuda() -> bool:
    """Whether the PyTorch here could use the library."""
    folder = cpu.torch_folder()
    return folder is not None and (folder / "lib" / "libtorch_cuda.so").exists()


def fingerprint() -> str:
    """Changes when a library that was built earlier, perhaps on another machine, must not be used."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr((FLAGS, ARCHITECTURES, cpu.TARGET, platform.machine(), platform.libc_ver())).encode())
    return digest.hexdigest()[:20]


def compile_command(source: Path, extra_flags: tuple[str, ...] = ()) -> list[str]:
    """Compiles one source into an object of its name, in the folder in which it runs."""
    targets = [f"-gencode={architecture}" for architecture in ARCHITECTURES]
    flags = [*FLAGS, *targets, cpu.TARGET, f"-I{cpu.torch_folder() / 'include'}", *extra_flags]
    return [compiler(), *flags, "-c", str(source), "-o", f"{source.stem}.o"]


def link_command() -> list[str]:
    """Makes the library of the objects in the folder in which it runs."""
    objects = [f"{source.stem}.o" for source in sources()]
    return [compiler(), *FLAGS, "-shared", *objects, f"-L{cpu.torch_folder() / 'lib'}", "-ltorch_cpu", "-o", LIBRARY]


def sources() -> list[Path]:
    return sorted(SOURCES.glob("*.cu"))


def build(folder: Path) -> Path:
    """Compiles into `folder`, in a minute of one processor; see `lowrank_d2.layers.ms_deform_attn.build.build`.

    Raises:
        BuildError: something is missing, or a compiler fails; with its last lines.
    """
    missing = obstacle()
    if missing:
        raise BuildError(missing)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as name:
        made = _compile(Path(name))
        made.with_suffix(".json").write_text(json.dumps(_describe(made)))
        for path in (made, made.with_suffix(".json")):
            os.replace(path, folder / path.name)
    return folder / LIBRARY


def _compile(folder: Path) -> Path:
    with ThreadPoolExecutor(cpu._jobs()) as pool:
        list(pool.map(lambda source: cpu._run(compile_command(source), folder), sources()))
    cpu._run(link_command(), folder)
    return folder / LIBRARY


def _describe(library: Path) -> dict[str, object]:
    return cpu._describe(library) | {"fingerprint": fingerprint()}


def verify(library: Path) -> str | None:
    """What is wrong with a library on disk; None when it is complete and was built from these sources."""
    try:
        stored, found = json.loads(library.with_suffix(".json").read_text()), _describe(library)
    except (OSError, ValueError) as error:
        return f"{library} or its side file cannot be read ({error})"
    return None if stored == found else f"{library} is damaged, or was built from other sources or for another system"
