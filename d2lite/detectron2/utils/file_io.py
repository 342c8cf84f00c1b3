"""The path manager through which Detectron2 opens every file."""
from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathHandler", "PathManager"]

# An instance of its own, so that other users of iopath neither see our handlers nor change them.
PathManager = _PathManager()


class RedirectingHandler(PathHandler):
    """Opens ``PREFIX + name`` as what lies at ``address(name)``, downloaded once into iopath's cache."""

    PREFIX: str

    def address(self, name: str) -> str:
        raise NotImplementedError

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, **options):
        return PathManager.get_local_path(self.address(path.removeprefix(self.PREFIX)), **options)

    def _open(self, path, mode="r", **options):
        return PathManager.open(PathManager.get_local_path(path), mode, **options)


class Detectron2Handler(RedirectingHandler):
    """``detectron2://``: files that Detectron2's authors host."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def address(self, name: str) -> str:
        return self.S3_DETECTRON2_PREFIX + name


for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
