"""Short names of ImageNet weights: `catalog://ImageNetPretrained/MSRA/R-50`."""
from iopath.common.file_io import PathHandler

from detectron2._lite import NotInLiteRuntime
from detectron2.utils.file_io import PathManager


class ModelCatalog:
    """Short names -> addresses of weights that the original Detectron published."""

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    C2_IMAGENET_MODELS = {
        "FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
        "FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
        "FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
    }

    @staticmethod
    def get(name):
        """The address of `ImageNetPretrained/...`.

        Raises:
            KeyError: no such ImageNet model.
            NotInLiteRuntime: a Caffe2 detector, whose architecture is not here either.
            RuntimeError: any other name.
        """
        if name.startswith("Caffe2Detectron/COCO"):
            raise NotInLiteRuntime(f"the model {name}")
        kind, _, model = name.partition("/")
        if kind != "ImageNetPretrained":
            raise RuntimeError(f"The catalog has no model {name}")
        return f"{ModelCatalog.S3_C2_DETECTRON_PREFIX}/{ModelCatalog.C2_IMAGENET_MODELS[model]}"


class ModelCatalogHandler(PathHandler):
    """Opens catalog:// paths."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, **kwargs):
        return PathManager.get_local_path(ModelCatalog.get(path[len(self.PREFIX) :]), **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
