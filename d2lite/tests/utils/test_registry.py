import collections

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry, _convert_target_to_string, locate


class Outer:
    class Inner:
        pass


@pytest.mark.parametrize(
    "target, name",
    [
        (torch.optim.SGD, "torch.optim.SGD"),
        (torch.nn.Conv2d, "torch.nn.Conv2d"),
        (ShapeSpec, "detectron2.layers.ShapeSpec"),
        (len, "builtins.len"),
        (collections.OrderedDict, "collections.OrderedDict"),
    ],
)
def test_public_names(target, name):
    assert _convert_target_to_string(target) == name
    assert locate(name) is target


def test_nested_classes_use_qualified_names():
    assert _convert_target_to_string(Outer.Inner).endswith("test_registry.Outer.Inner")


@pytest.mark.parametrize("name", ["nothing", "torch.nothing", "no.such.module"])
def test_unknown_names(name):
    with pytest.raises(ImportError):
        locate(name)


def test_registry():
    registry = Registry("THINGS")

    @registry.register()
    class Thing:
        pass

    assert registry.get("Thing") is Thing
    with pytest.raises(KeyError, match="THINGS"):
        registry.get("Other")
