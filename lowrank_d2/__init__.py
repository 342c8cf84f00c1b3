"""Adapt large Detectron2 detectors and segmenters by training about one percent of them.

Importing registers the models, the datasets, and the prefix `lowrank_d2://` for the files that this package ships.
"""
import importlib.util
import os
from pathlib import Path
from typing import IO, Any, Union

if importlib.util.find_spec("detectron2") is None:
    raise ImportError(
        "lowrank_d2 extends Detectron2, and no module detectron2 is installed. Run `pip install ./d2lite` in the "
        "folder of lowrank_d2 for the pure Python runtime, or install Detectron2 itself."
    )

# Threads of OpenMP that wait for others burn a core that another process may need, and a training step is a thousand
# short waits. Read when torch is imported, next line; without effect afterwards (docs/benchmarks/threads.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from detectron2.utils.file_io import PathManager  # noqa: E402
from iopath.common.file_io import PathHandler  # noqa: E402


class _PackageFiles(PathHandler):
    """lowrank_d2://name is the file `name` in this package's folder assets/."""

    PREFIX = "lowrank_d2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(Path(__file__).parent / "assets" / path.removeprefix(self.PREFIX))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Union[IO[str], IO[bytes]]:
        return open(self._get_local_path(path), mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).exists()

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()


PathManager.register_handler(_PackageFiles(), allow_override=True)

import lowrank_d2.modeling  # noqa: E402, F401
from lowrank_d2.data.datasets import register_all  # noqa: E402

register_all()
