"""Checkpoints that are complete or absent, and read without executing anything.

`model_*.pth` hold {"model": state dict, "trainer": everything a resume needs, "iteration"}; a plain Detectron2 reads
them as MODEL.WEIGHTS.
"""
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List
from urllib.parse import parse_qs

import numpy as np
import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError

from lowrank_d2.errors import CheckpointError, OutputError
from lowrank_d2.files import PathLike, replacing, write_text
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.peft.trainable import added_names

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
# What old pickles (Detectron2's .pkl, numpy numbers in a .pth) need besides plain containers.
_ARRAY_GLOBALS = {
    ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"), ("_codecs", "encode"),
}


class LowRankCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writing, restricted reading and a search for the newest intact file."""

    def save(self, name: str, **extra: Any) -> None:
        """Writes `name`.pth of the model and `extra`, then last_checkpoint; on the main process only.

        Raises:
            OutputError: no space or no permission; the previous checkpoint is untouched. Its exit code is 3.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **extra}
        for key, part in self.checkpointables.items():
            data[key] = part.state_dict()
        path = Path(self.save_dir, f"{name}.pth")
        try:
            _check_space(path, data)
            logger.info("Saving %s", path)
            with replacing(path) as temporary:
                _write(data, temporary, path)
            self.tag_last_checkpoint(path.name)
        except OutputError as error:
            error.exit_code = 3
            raise

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir, LAST), last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, be it only a checkpoint without a last_checkpoint beside it."""
        return Path(self.save_dir, LAST).exists() or any(_checkpoints(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """The checkpoint that last_checkpoint names, or the newest intact one where that is impossible.

        Raises:
            CheckpointError: none is intact.
        """
        folder = Path(self.save_dir)
        problem = f"{folder / LAST} is missing"
        try:
            named = Path((folder / LAST).read_text(encoding="utf-8").strip())
            if named.name != str(named):
                problem = f"{folder / LAST} names {named}, which is outside this folder"
            elif _is_intact(folder / named):
                return str(folder / named)
            else:
                problem = f"{folder / LAST} names {named}, which is missing or damaged"
        except (OSError, UnicodeDecodeError):
            pass
        for path in _checkpoints(folder):
            if _is_intact(path):
                logger.warning("%s: resuming from %s, the newest intact checkpoint.", problem, path.name)
                return str(path)
        raise CheckpointError(f"{problem}, and no other checkpoint there is intact. Start anew without --resume.")

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """Loads a file or address into the model; "" loads nothing.

        Raises:
            CheckpointError: no such file, damaged, unsafe to read, or it holds numbers that are not finite.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        path, _, query = str(path).partition("?")
        self._match_by_suffix = parse_qs(query).get("matching_heuristics") == ["True"]
        return super().load(_local_file(path), *args, **kwargs)

    def _load_file(self, filename: str) -> Dict[str, Any]:
        loaded = read_checkpoint(filename)
        if self._match_by_suffix:
            loaded["matching_heuristics"] = True
        _refuse_non_finite(loaded["model"], filename)
        return loaded

    def _load_model(self, checkpoint: Dict[str, Any]) -> Any:
        self._refuse_other_shapes(checkpoint["model"])
        return super()._load_model(checkpoint)

    def _refuse_other_shapes(self, tensors: Dict[str, Any]) -> None:
        """For models that know their `class_dependent` tensors: fvcore would leave out whatever has another shape."""
        allowed = getattr(self.model, "class_dependent", None)
        if allowed is None:
            return
        # Of methods and branches that differ, loading says more than their shapes.
        apart = allowed | added_names(self.model) | training_only_names(self.model)
        ours = {name: tuple(value.shape) for name, value in self.model.state_dict().items() if name not in apart}
        wrong = [name for name in ours if name in tensors and tuple(tensors[name].shape) != ours[name]]
        if wrong:
            table = "\n".join(f"  {name}: {tuple(tensors[name].shape)} instead of {ours[name]}" for name in wrong[:12])
            more = f"\n  and {len(wrong) - 12} more" if len(wrong) > 12 else ""
            raise CheckpointError(
                f"The checkpoint has {len(wrong)} tensors of other shapes than the model:\n{table}{more}\n"
                "The configuration describes another model. Compare it with the one that the weights were trained with."
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        if hasattr(self.model, "class_dependent"):  # it has said what is missing, in a line instead of a list
            incompatible = incompatible._replace(incorrect_shapes=[], missing_keys=[])
        super()._log_incompatible_keys(incompatible)


def verify_weights(cfg: CfgNode) -> None:
    """Looks for the file MODEL.WEIGHTS, and compares it with MODEL.WEIGHTS_SHA256 where that is set; "" is no file.

    Raises:
        CheckpointError: there is no such file, or its sum is another.
    """
    if not cfg.MODEL.WEIGHTS:
        return
    path = _local_file(cfg.MODEL.WEIGHTS.partition("?")[0])
    expected = cfg.MODEL.WEIGHTS_SHA256.lower()
    if not expected:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    found = digest.hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path} ({os.path.getsize(path)} bytes) has the SHA-256 {found}, MODEL.WEIGHTS_SHA256 is {expected}. "
            "Was the download cut off? Get the file again, or correct the key."
        )


def read_checkpoint(path: str) -> Dict[str, Any]:
    """A .pth, .pkl (Detectron2's or Caffe2's) or .safetensors file as {"model": ..., ...}, on the CPU.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or would run code; the message names file and size.
    """
    with open(path, "rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        raise _damaged(path, "is empty")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _damaged(path, "is a web page, not a checkpoint: the download went wrong")
    if path.endswith(".safetensors"):
        return {"model": _read_safetensors(path)}
    loaded = _read_pickle(path) if path.endswith(".pkl") else _read_torch(path)
    if not isinstance(loaded, dict):
        raise _damaged(path, f"holds a {type(loaded).__name__} instead of tensors by name")
    if "blobs" in loaded:
        loaded = {"model": loaded["blobs"], "__author__": "Caffe2"}
    if "model" not in loaded:
        loaded = {"model": loaded.get("state_dict", loaded)}  # mmdetection's word
    if loaded.get("__author__") == "Caffe2":
        loaded["model"] = {name: value for name, value in loaded["model"].items() if not name.endswith("_momentum")}
        loaded["matching_heuristics"] = True
    if path.endswith(".pkl"):
        loaded["model"] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in loaded["model"].items()
        }
    return loaded


def stored_class_names(path: str) -> List[str]:
    """The classes of the run that wrote a checkpoint, or of the delta merged into it; [] for files of other programs.

    Raises:
        CheckpointError: there is no such file, or as `read_checkpoint`.
    """
    local = _local_file(path)
    if local.endswith(".safetensors"):
        return json.loads(_metadata(local).get("class_names", "[]"))
    if not local.endswith(".pth"):
        return []
    trainer = read_checkpoint(local).get("trainer")
    return list(trainer.get("class_names", [])) if isinstance(trainer, dict) else []


def _local_file(path: str) -> str:
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:  # every handler of addresses has errors of its own
        raise CheckpointError(f"The weights {path} cannot be fetched: {error}. Check MODEL.WEIGHTS.") from error
    if not os.path.isfile(local):
        raise CheckpointError(f"The weights {path} do not exist. Check MODEL.WEIGHTS.")
    return local


def _read_safetensors(path: str) -> Dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, f"is damaged ({error})") from error


def _metadata(path: str) -> Dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, f"is damaged ({error})") from error


def _read_torch(path: str) -> Any:
    if zipfile.is_zipfile(path) and _has_flipped_bits(path):
        raise _damaged(path, "is damaged: its content differs from its check sums")
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's restricted unpickler raises almost anything on damaged files
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and unsafe:
            raise _unsafe(path, unsafe.group(1)) from error
        raise _damaged(path, "is damaged, cut off or no checkpoint") from error


def _numpy_globals() -> list:
    """What numpy's numbers and arrays need to be rebuilt, under the names that numpy 1 and 2 write."""
    found: list = [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "u4", "u1", "?"))]
    for value in (np.float64(0), np.empty(0)):
        rebuild = value.__reduce__()[0]
        found += [(rebuild, f"{module}.multiarray.{rebuild.__name__}") for module in ("numpy.core", "numpy._core")]
    return found


class _ArrayUnpickler(pickle.Unpickler):
    """Admits containers, text, numbers and numpy arrays."""

    def __init__(self, stream: Any, path: str):
        super().__init__(stream, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS and not (module == "numpy.dtypes" and name.endswith("DType")):
            raise _unsafe(self._path, f"{module}.{name}")
        return super().find_class(module, name)


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as stream:
        try:
            return _ArrayUnpickler(stream, path).load()
        except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise _damaged(path, "is damaged or cut off") from error


def _refuse_non_finite(model: Dict[str, Any], path: str) -> None:
    bad = [
        name for name, value in model.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} tensors hold NaN or Inf, {', '.join(bad[:3])} among them. Take an earlier checkpoint."
        )


def _damaged(path: str, what: str) -> CheckpointError:
    content = Path(path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return CheckpointError(
        f"{path} {what} ({len(content)} bytes, SHA-256 {digest}...). Download or copy it again and compare the size."
    )


def _unsafe(path: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not loaded: it would run {name}. Checkpoints may hold tensors, arrays, numbers and text only; "
        "convert it where you trust it."
    )


def _checkpoints(folder: str) -> Iterator[Path]:
    """The model_*.pth below `folder`, newest first."""
    dated = [(path.stat().st_mtime_ns, path.name, path) for path in Path(folder).glob("model_*.pth")]
    return (path for _, _, path in sorted(dated, reverse=True))


def _is_intact(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path) and not _has_flipped_bits(path)


def _has_flipped_bits(path: PathLike) -> bool:
    """Whether a part of an archive differs from its check sum; torch.load does not look at these."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return True


def _write(data: Dict[str, Any], temporary: Path, path: Path) -> None:
    try:
        with open(temporary, "wb") as stream:
            torch.save(data, stream)
    except RuntimeError as error:  # torch's archive writer hides the operating system's reason
        free = shutil.disk_usage(path.parent).free
        reason = str(error).splitlines()[0]
        raise OutputError(f"{path} cannot be written: {reason} ({free / 2**20:.0f} MiB are free there).") from error


def _check_space(path: Path, data: Dict[str, Any]) -> None:
    needed, free = sum(_sizes([data])), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"No space left to write {path}: {needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free. "
            "Free some, then run again with --resume."
        )


def warn_of_little_space(folder: str, model: torch.nn.Module) -> None:
    """A warning at the start when fewer than two checkpoints of `model` fit on the disk."""
    needed, free = 2 * sum(_sizes([model.state_dict()])), shutil.disk_usage(folder).free
    if free < needed:
        logger.warning("%s has %.0f MiB free; two checkpoints need %.0f.", folder, free / 2**20, needed / 2**20)


def _sizes(values: List[Any]) -> Iterator[int]:
    """Bytes of all tensors below lists and mappings."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.numel() * value.element_size()
        elif isinstance(value, dict):
            yield from _sizes(list(value.values()))
        elif isinstance(value, (list, tuple)):
            yield from _sizes(list(value))
