"""Which form of the operator runs on this machine, and why: the one that was installed, one compiled here, or PyTorch's.

The environment variable LOWRANK_D2_OPS forces one: `prebuilt`, `jit` or `torch`. LOWRANK_D2_CACHE names the folder of
compiled libraries (default: lowrank_d2 in $XDG_CACHE_HOME or ~/.cache). Nothing happens before the first use.
"""
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import stat
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Iterator, Optional

import torch

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.ms_deform_attn import build, build_cuda, ops

CHOICES = ("prebuilt", "jit", "torch")
PREBUILT = Path(__file__).with_name(build.LIBRARY)
LOCK_SECONDS = 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """Attributes:
        name: one of CHOICES.
        reason: why it is this one.
        library: what was loaded; None for PyTorch's form.
    """

    name: str
    reason: str
    library: Optional[Path] = None

    def instruction_set(self) -> Optional[str]:
        """What the compiled kernels for the CPU use on this machine: avx512, avx2 or baseline."""
        name = getattr(_symbols(self.library), "lowrank_d2_instruction_set", None) if self.library else None
        if name is None:
            return None
        name.restype = ctypes.c_char_p
        return name().decode()

    def use_instruction_set(self, name: str) -> bool:
        """Changes it, for tests and measurements. False where this machine lacks it."""
        return bool(_symbols(self.library).lowrank_d2_use_instruction_set(name.encode()))


@functools.cache
def current() -> Backend:
    """The back end of this process on the CPU; chosen, and loaded or compiled where needed, by the first call.

    Raises:
        ConfigError: LOWRANK_D2_OPS names no back end, or one that cannot be had here.
    """
    return _choose("CPU", build)


@functools.cache
def current_on_cuda() -> Backend:
    """As `current`, for tensors on a GPU."""
    if not torch.cuda.is_available():
        return Backend("torch", "PyTorch sees no GPU")
    oldest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if oldest < build_cuda.OLDEST:
        return Backend("torch", f"a GPU of compute capability {oldest[0]}.{oldest[1]} is too old for the kernels")
    return _choose("CUDA", build_cuda)


def _choose(device: str, recipe: ModuleType) -> Backend:
    wanted = os.environ.get("LOWRANK_D2_OPS", "")
    if wanted and wanted not in CHOICES:
        raise ConfigError(f"LOWRANK_D2_OPS is {wanted!r}. Set it to prebuilt, jit or torch, or unset it.")
    if wanted == "torch":
        return Backend("torch", "LOWRANK_D2_OPS=torch asks for it")
    obstacles = []
    for name, find in (("prebuilt", _prebuilt), ("jit", cached_library)):
        if wanted in ("", name):
            try:
                library = find(recipe=recipe)
                load(library, device)
                reason = f"LOWRANK_D2_OPS={name} asks for it" if wanted else _REASONS[name]
                return Backend(name, f"{reason}; {library}", library)
            except build.BuildError as error:
                obstacles.append(str(error))
    if wanted:
        raise ConfigError(f"LOWRANK_D2_OPS={wanted} cannot be had: {obstacles[0]}. Unset it to take what there is.")
    warnings.warn(
        f"The operators of lowrank_d2 run in their PyTorch form on {device}, multi-scale deformable attention several times "
        f"slower than compiled: {obstacles[-1]}. `python -m lowrank_d2.env` tells more; LOWRANK_D2_OPS=torch silences this.",
        RuntimeWarning,
        stacklevel=3,
    )
    return Backend("torch", obstacles[-1])


_REASONS = {"prebuilt": "it was built at installation", "jit": "it was compiled on this machine"}


def has_kernel(device_type: str) -> bool:
    """Whether a compiled kernel serves tensors on `device_type`."""
    backends = {"cpu": current, "cuda": current_on_cuda}
    return device_type in backends and backends[device_type]().name != "torch"


# The answer holds for the life of the process. torch.compiler.assume_constant_result sets the same mark, but would
# import the compiler, for seconds, into every program.
has_kernel._dynamo_marked_constant = True


def _prebuilt(recipe: ModuleType) -> Path:
    library = PREBUILT.with_name(recipe.LIBRARY)
    if not library.exists():
        raise build.BuildError("none was built at installation (pip install --no-build-isolation, with a compiler, builds one)")
    return _sound(library, recipe)


def _sound(library: Path, recipe: ModuleType) -> Path:
    wrong = recipe.verify(library)
    if wrong:
        raise build.BuildError(wrong)
    return library


def load(library: Path, device: str = "CPU") -> None:
    """Loads a verified library and checks that it registered for `device` what `ops` expects.

    Raises:
        build.BuildError: it cannot be loaded here, or is not ours.
    """
    try:
        torch.ops.load_library(library)
        abi = _symbols(library).lowrank_d2_ops_abi()
    except (OSError, AttributeError) as error:
        raise build.BuildError(f"{library} cannot be loaded: {error}") from error
    registered = all(
        torch._C._dispatch_has_kernel_for_dispatch_key(name, device) for name in (ops.NAME, ops.BACKWARD)
    )
    if abi != ops.ABI or not registered:
        raise build.BuildError(f"{library} belongs to another version (ABI {abi}, {ops.ABI} is expected)")


@functools.cache
def _symbols(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def cached_library(seconds: float = LOCK_SECONDS, recipe: ModuleType = build) -> Path:
    """The library of these sources in the cache; compiled first where it is not there.

    One process compiles, the others wait for it. A failure is remembered, so that not every process tries again.

    Args:
        seconds: how long to wait for another process.
        recipe: `build` or `build_cuda`.

    Raises:
        build.BuildError: it cannot be compiled here, or another process takes too long.
    """
    folder = cache_root() / recipe.fingerprint()
    library = folder / recipe.LIBRARY
    if recipe.verify(library) is None:
        return library
    missing = recipe.obstacle()
    if missing:
        raise build.BuildError(missing)
    with _lock(folder, seconds):
        if recipe.verify(library) is None:
            return library
        failure = folder / f"failed-{_compiler_mark(recipe)}"
        if failure.exists():
            raise build.BuildError(f"an earlier attempt failed ({failure}, which you may delete): {failure.read_text()}")
        logger.info("Compiling the operators of lowrank_d2 into %s, once; less than a minute", folder)
        try:
            recipe.build(folder)
        except build.BuildError as error:
            failure.write_text(str(error))
            raise
    return _sound(library, recipe)


def _compiler_mark(recipe: ModuleType) -> str:
    """Another or a newer compiler deserves another attempt."""
    program = Path(recipe.compiler()).resolve()
    return hashlib.sha256(f"{program} {program.stat().st_mtime_ns}".encode()).hexdigest()[:12]


def cache_root() -> Path:
    """The folder of compiled libraries; one for this process alone where the usual one cannot be written."""
    named = os.environ.get("LOWRANK_D2_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowrank_d2"
    root = Path(named).expanduser() if named else home
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK | os.X_OK) or any(root.iterdir()):
            return root
    except OSError:
        pass
    return _private_temporary_folder()


@functools.cache
def _private_temporary_folder() -> Path:
    """The same for every process of this user; never one that somebody else could have put a library into."""
    folder = Path(tempfile.gettempdir()) / f"lowrank_d2-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700 and stat.S_ISDIR(status.st_mode):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="lowrank_d2-"))


@contextlib.contextmanager
def _lock(folder: Path, seconds: float) -> Iterator[None]:
    """Holds `folder` among processes. The system releases the lock of a process that dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise build.BuildError(f"{folder} cannot be written ({error}); name another in LOWRANK_D2_CACHE") from error
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise build.BuildError(f"another process has been compiling in {folder} for {seconds:.0f} s") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)
