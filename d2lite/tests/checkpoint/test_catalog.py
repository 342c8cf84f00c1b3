import pytest

from detectron2.checkpoint.catalog import ModelCatalog


def test_imagenet_names():
    address = ModelCatalog.get("ImageNetPretrained/MSRA/R-50")
    assert address == "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"
    with pytest.raises(KeyError):
        ModelCatalog.get("ImageNetPretrained/MSRA/R-51")
    with pytest.raises(RuntimeError):
        ModelCatalog.get("elsewhere/R-50")
