from collections import Counter
from dataclasses import dataclass, field

import pytest
from detectron2.config import LazyCall, instantiate
from detectron2.config.instantiate import dump_dataclass
from detectron2.layers import ShapeSpec
from omegaconf import ListConfig


@dataclass
class Outer:
    inner: ShapeSpec
    many: list = field(default_factory=list)


def keep(**kwargs):
    return kwargs


def test_nested_calls_innermost_first():
    cfg = LazyCall(keep)(a=LazyCall(Counter)(n=2), items=[1, LazyCall(Counter)(m=1)], plain={"x": 1})
    made = instantiate(cfg)
    assert made["a"] == Counter(n=2) and made["items"] == [1, Counter(m=1)] and made["plain"] == {"x": 1}


def test_interpolation_follows_later_changes():
    cfg = LazyCall(keep)(a=3, b="${a}")
    cfg.a = 5
    assert instantiate(cfg) == {"a": 5, "b": 5}


def test_a_target_may_be_described_itself():
    def make(n):
        return lambda **kwargs: (n, kwargs)

    assert instantiate(LazyCall(LazyCall(make)(n=1))(k=2)) == (1, {"k": 2})


def test_plain_mappings_by_name():
    assert instantiate({"_target_": "collections.Counter", "a": 2}) == Counter(a=2)


@pytest.mark.parametrize("value", [5, "text", (1, 2), None])
def test_everything_else_is_returned(value):
    assert instantiate(value) is value


def test_lists():
    assert instantiate([1, {"_target_": Counter, "a": 1}]) == [1, Counter(a=1)]
    assert isinstance(instantiate(ListConfig([1, 2])), ListConfig)


def test_dataclasses():
    assert instantiate(LazyCall(ShapeSpec)(channels=3)) == ShapeSpec(channels=3)
    assert instantiate(LazyCall(keep)(spec=ShapeSpec(stride=4)))["spec"] == ShapeSpec(stride=4)
    dumped = dump_dataclass(Outer(ShapeSpec(1), [ShapeSpec(2)]))
    assert dumped["inner"]["_target_"] == "detectron2.layers.ShapeSpec" and dumped["inner"]["channels"] == 1
    assert instantiate(dumped["inner"]) == ShapeSpec(1)
    assert dumped["many"][0]["channels"] == 2


def test_wrong_arguments_name_the_target(caplog):
    with pytest.raises(TypeError):
        instantiate({"_target_": "itertools.count", "no_such_argument": 1})
    assert "itertools.count" in caplog.text


def test_wrong_targets():
    with pytest.raises(ImportError):
        instantiate({"_target_": "itertools.nothing"})
    with pytest.raises(AssertionError):
        instantiate({"_target_": 3})
