import copy
import pickle

import pytest

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog


@pytest.fixture
def name():
    yield "test_catalog"
    DatasetCatalog.pop("test_catalog", None)
    MetadataCatalog.pop("test_catalog", None)


class TestDatasetCatalog:
    def test_the_function_runs_at_every_get(self, name):
        calls = []
        DatasetCatalog.register(name, lambda: calls.append(1) or [len(calls)])
        assert calls == []
        assert DatasetCatalog.get(name) == [1]
        assert DatasetCatalog.get(name) == [2]

    def test_a_name_is_registered_once(self, name):
        DatasetCatalog.register(name, list)
        with pytest.raises(AssertionError, match=name):
            DatasetCatalog.register(name, list)
        DatasetCatalog.remove(name)
        assert name not in DatasetCatalog.list()

    def test_only_functions(self, name):
        with pytest.raises(AssertionError):
            DatasetCatalog.register(name, [])

    def test_an_unknown_name_lists_the_known(self, name):
        DatasetCatalog.register(name, list)
        with pytest.raises(KeyError, match="test_catalog"):
            DatasetCatalog.get("test_catalogue")


class TestMetadata:
    def test_made_on_first_use_and_shared(self, name):
        MetadataCatalog.get(name).thing_classes = ["a"]
        assert MetadataCatalog.get(name).thing_classes == ["a"]
        assert MetadataCatalog.get(name).name == name

    def test_written_once(self, name):
        metadata = MetadataCatalog.get(name).set(thing_classes=["a"], year=2026)
        metadata.thing_classes = ["a"]
        with pytest.raises(AssertionError, match="year"):
            metadata.year = 2027
        assert metadata.year == 2026

    def test_missing(self, name):
        metadata = MetadataCatalog.get(name)
        with pytest.raises(AttributeError, match="stuff_classes"):
            metadata.stuff_classes
        assert metadata.get("stuff_classes") is None
        assert metadata.get("stuff_classes", 3) == 3

    def test_as_dict_is_a_copy(self, name):
        metadata = MetadataCatalog.get(name).set(year=1)
        metadata.as_dict()["year"] = 2
        assert metadata.year == 1

    def test_travels_to_workers(self):
        metadata = Metadata(name="x", thing_classes=["a", "b"])
        for other in (pickle.loads(pickle.dumps(metadata)), copy.deepcopy(metadata)):
            assert other.as_dict() == metadata.as_dict()

    def test_an_empty_name(self):
        with pytest.raises(AssertionError):
            MetadataCatalog.get("")
