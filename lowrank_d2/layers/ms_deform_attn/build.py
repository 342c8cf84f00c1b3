"""Compiles the operator for the CPU. Used by setup.py, which loads this file alone, and at first use.

Standard library only, and no import of torch: its headers and its libtorch_cpu are all that is needed.
"""
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "ms_deform_attn_cpu.so"
SOURCES = Path(__file__).with_name("csrc") / "cpu"
# PyTorch 2.10, the first whose stable ABI has what is used; any later one loads the same library.
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Not -ffast-math, which would lose NaN; not -march=native, because caches and wheels travel between machines.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
AVX2 = ("-mavx2", "-mfma", "-mprfchw")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw")


class BuildError(Exception):
    """Why there is no library, and what to do about it."""


def compiler() -> str | None:
    """Path of the C++ compiler: that of $CXX, or the first of the usual names."""
    wanted = os.environ.get("CXX")
    names = [shlex.split(wanted)[0]] if wanted and wanted.strip() else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def obstacle() -> str | None:
    """What is missing for a build, with the remedy; None when nothing is."""
    if compiler() is None:
        return "no C++ compiler was found (install g++, or name one in the environment variable CXX)"
    folder = torch_folder()
    if folder is None:
        return "PyTorch is not installed where this is built (install it first, then pip install --no-build-isolation)"
    if not (folder / "include" / "torch" / "csrc" / "stable" / "ops.h").is_file():
        return f"the PyTorch in {folder} has no headers of its stable ABI (install PyTorch 2.10 or later)"
    return None


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The flags of each set that is compiled in; which one runs is decided on the machine that runs it."""
    sets = {"baseline": ()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        sets |= {"avx2": AVX2, "avx512": AVX512}
    return sets


def fingerprint() -> str:
    """Changes when a library that was built earlier, perhaps on another machine, must not be used."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr((FLAGS, TARGET, instruction_sets(), platform.system(), platform.machine(), _libc())).encode())
    return digest.hexdigest()[:20]


def _libc() -> tuple[str, str]:
    try:
        return platform.libc_ver()
    except OSError:
        return ("", "")


def build(folder: Path, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compiles into `folder` and writes a side file with the library's size and hash, by which `verify` knows it.

    Both appear by renaming: another process sees the old pair, or a pair that does not verify for an instant, or the new.

    Args:
        extra_flags: for compiler and linker, such as those of a sanitizer.

    Raises:
        BuildError: something is missing, or the compiler fails; with its last lines.
    """
    missing = obstacle()
    if missing:
        raise BuildError(missing)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as name:
        made = _compile(Path(name), extra_flags)
        side = made.with_suffix(".json")
        side.write_text(json.dumps(_describe(made)))
        os.replace(made, folder / LIBRARY)
        os.replace(side, (folder / LIBRARY).with_suffix(".json"))
    return folder / LIBRARY


def _compile(folder: Path, extra_flags: tuple[str, ...]) -> Path:
    program, torch = compiler(), torch_folder()
    common = [program, *FLAGS, *extra_flags]
    steps = []
    for name in ("ms_deform_attn", "masks"):
        steps.append([*common, TARGET, f"-I{torch / 'include'}", "-c", str(SOURCES / f"{name}.cpp"), "-o", f"{name}.o"])
    for name, flags in instruction_sets().items():
        define = f"-DLOWRANK_D2_INSTRUCTION_SET={name}"
        steps.append([*common, *flags, "-Wno-psabi", define, "-c", str(SOURCES / "kernel.cpp"), "-o", f"{name}.o"])
    with ThreadPoolExecutor(_jobs()) as pool:
        list(pool.map(lambda step: _run(step, folder), steps))
    objects = [step[-1] for step in steps]
    # Without -ltorch_cpu the library cannot be loaded where torch hides its symbols.
    _run([*common, "-shared", *objects, f"-L{torch / 'lib'}", "-ltorch_cpu", "-o", LIBRARY], folder)
    return folder / LIBRARY


def _jobs() -> int:
    """Compilers at a time: $MAX_JOBS, as for every extension of PyTorch, or as many as there are processors."""
    wanted = os.environ.get("MAX_JOBS", "")
    return max(1, int(wanted)) if wanted.isdigit() else os.cpu_count() or 1


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} could not be started: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stderr[-3000:].strip()}")


def _describe(library: Path) -> dict[str, object]:
    content = library.read_bytes()
    return {"fingerprint": fingerprint(), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def verify(library: Path) -> str | None:
    """What is wrong with a library on disk; None when it is complete and was built from these sources.

    Loading a truncated library kills the process, and a foreign one loads without a word: so this comes first.
    """
    try:
        stored = json.loads(library.with_suffix(".json").read_text())
        found = _describe(library)
    except (OSError, ValueError) as error:
        return f"{library} or its side file cannot be read ({error})"
    if not isinstance(stored, dict) or stored.get("fingerprint") != found["fingerprint"]:
        return f"{library} was built from other sources or for another system"
    if stored != found:
        return f"{library} is damaged: its size or hash is not the recorded one"
    return None
