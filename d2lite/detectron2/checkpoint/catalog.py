"""Short names of ImageNet weights: `catalog://ImageNetPretrained/MSRA/R-50`."""
from detectron2._lite import NotInLiteRuntime
from detectron2.utils.file_io import PathManager, RedirectingHandler


class ModelCatalog:
    """Short names -> addresses of weights that the original Detectron published."""

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    C2_IMAGENET_MODELS = {
        short: f"ImageNetPretrained/{folder}/{short.rpartition('/')[2]}.pkl"
        for folder, short in (
            ("MSRA", "MSRA/R-50"), ("MSRA", "MSRA/R-101"),
            ("47261647", "FAIR/R-50-GN"), ("47592356", "FAIR/R-101-GN"),
            ("20171220", "FAIR/X-101-32x8d"), ("FBResNeXt", "FAIR/X-101-64x4d"), ("25093814", "FAIR/X-152-32x8d-IN5k"),
        )
    }

    @staticmethod
    def get(name):
        """The address of `ImageNetPretrained/...`; KeyError for another model, NotInLiteRuntime for a Caffe2 detector,
        whose architecture is not here either, RuntimeError for any other name."""
        kind, _, model = name.partition("/")
        if kind == "ImageNetPretrained":
            return f"{ModelCatalog.S3_C2_DETECTRON_PREFIX}/{ModelCatalog.C2_IMAGENET_MODELS[model]}"
        if kind == "Caffe2Detectron":
            raise NotInLiteRuntime(f"the model {name}")
        raise RuntimeError(f"The catalog has no model {name}")


class ModelCatalogHandler(RedirectingHandler):
    """Opens catalog:// paths."""

    PREFIX = "catalog://"
    address = staticmethod(ModelCatalog.get)


PathManager.register_handler(ModelCatalogHandler())
