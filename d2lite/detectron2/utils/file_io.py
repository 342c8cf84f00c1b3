"""The path manager through which Detectron2 opens every file."""
from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathHandler", "PathManager"]

# An instance of its own, so that other users of iopath neither see our handlers nor change them.
PathManager = _PathManager()


class Detectron2Handler(PathHandler):
    """``detectron2://``: files that Detectron2's authors host, downloaded once into iopath's cache."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _hosted(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX):]

    def _get_local_path(self, path, **kwargs):
        return PathManager.get_local_path(self._hosted(path), **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
