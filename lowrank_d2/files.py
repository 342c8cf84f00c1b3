"""Writing files so that a reader, also after a crash or a full disk, sees the old content or the new, never a part."""
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Callable, Iterator, Optional, Union

from lowrank_d2.errors import OutputError

PathLike = Union[str, os.PathLike]
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success it is flushed to disk and renamed to `path`.

    On any exception the temporary file is removed and what stood at `path` before is untouched.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise OutputError(explain(error, path)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OutputError(explain(cause, path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: object, **options: object) -> None:
    """Writes `value` as JSON, atomically; `options` go to json.dumps."""
    write_text(path, json.dumps(value, **options))


def write_with(path: PathLike, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary path)` and renames the result to `path`: for writers that want a file name."""
    with replacing(path) as temporary:
        write(temporary)


def explain(error: OSError, path: PathLike) -> str:
    """Why `path` could not be written, and what to do, for an OutputError."""
    path = Path(path)
    if error.errno in DISK_FULL:
        free = _free_bytes(path)
        return f"No space left to write {path} ({free / 2**20:.0f} MiB free). Free some, then run again with --resume."
    return f"{path} cannot be written: {error.strerror or error}. Choose a folder that you may write to."


@contextlib.contextmanager
def folder_lock(folder: PathLike) -> Iterator[None]:
    """Holds `folder`/.lock while a run writes there; the lock of a process that is gone is taken over.

    Raises:
        OutputError: another living process, or one on another host, holds the folder, or it cannot be written.
    """
    lock = Path(folder) / ".lock"
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError as error:
            if lock.parent.exists() and not lock.parent.is_dir():
                raise OutputError(f"{folder} is a file, not a folder. Name another OUTPUT_DIR.") from error
            _take_over(lock, me["host"])
        except OSError as error:
            raise OutputError(explain(error, lock)) from error
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(me, stream)
        yield
    finally:
        lock.unlink(missing_ok=True)


def _take_over(lock: Path, host: str) -> None:
    """Removes the lock of a dead process of this host; raises OutputError for any other."""
    try:
        owner = json.loads(lock.read_text())
        pid, owner_host = int(owner["pid"]), owner["host"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        pid, owner_host = -1, "unknown"
    if owner_host == host and not _alive(pid):
        logger.warning("%s was left by process %d, which is gone: taken over.", lock, pid)
        lock.unlink(missing_ok=True)
        return
    raise OutputError(
        f"{lock.parent} is in use by process {pid} on {owner_host}. Wait for that run, choose another OUTPUT_DIR, "
        f"or remove {lock} if you are sure that it has ended."
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync(path: Path) -> None:
    """Flushes a file or folder to the disk; folders of some systems cannot be synced, which loses nothing but time."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _system_error(error: Exception) -> Optional[OSError]:
    """The operating system's error behind `error`; libraries written in Rust (safetensors) only quote its number."""
    if isinstance(error, OSError):
        return error
    quoted = re.search(r"os error (\d+)", str(error))
    return OSError(int(quoted.group(1)), os.strerror(int(quoted.group(1)))) if quoted else None


def _free_bytes(path: Path) -> int:
    while not path.is_dir():
        path = path.parent
    return shutil.disk_usage(path).free
