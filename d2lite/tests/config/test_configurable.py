import pytest
from detectron2.config import CfgNode, configurable
from omegaconf import OmegaConf

CFG = {"WIDTH": 4, "DEPTH": 2}


class Head:
    @configurable
    def __init__(self, width, depth=1, *, shape=None):
        self.made_of = (width, depth, shape)

    @classmethod
    def from_config(cls, cfg, shape=None):
        return {"width": cfg.WIDTH, "depth": cfg.DEPTH, "shape": shape}


@configurable(from_config=lambda cfg, scale=1: {"width": cfg.WIDTH * scale})
def build(width, name="none"):
    return width, name


@pytest.mark.parametrize("cfg", [CfgNode(CFG), OmegaConf.create(CFG)], ids=["yacs", "omegaconf"])
def test_arguments_from_a_config(cfg):
    assert Head(cfg).made_of == (4, 2, None)
    assert Head(cfg=cfg).made_of == (4, 2, None)
    assert Head(cfg, "8x8").made_of == (4, 2, "8x8")
    assert Head(cfg, shape="8x8").made_of == (4, 2, "8x8")
    assert Head(cfg, depth=9).made_of == (4, 9, None)
    assert build(cfg) == (4, "none")
    assert build(cfg, scale=2, name="n") == (8, "n")


def test_explicit_arguments():
    assert Head(7, depth=3).made_of == (7, 3, None)
    assert build(3, "x") == (3, "x")


def test_unknown_keyword():
    with pytest.raises(TypeError):
        Head(CfgNode(CFG), height=3)


def test_a_subclass_inherits_from_config():
    class Wide(Head):
        @configurable
        def __init__(self, width, extra=0, **kwargs):
            super().__init__(width * 2, **kwargs)
            self.extra = extra

    head = Wide(CfgNode(CFG), extra=5)
    assert head.made_of == (8, 2, None) and head.extra == 5


def test_from_config_that_takes_everything():
    class Greedy(Head):
        @classmethod
        def from_config(cls, cfg, **kwargs):
            return {"width": cfg.WIDTH, **kwargs}

    assert Greedy(CfgNode(CFG), depth=6).made_of == (4, 6, None)


def test_what_is_wrong_with_a_class():
    class Nothing:
        @configurable
        def __init__(self, a=1):
            pass

    class NoClassmethod(Nothing):
        def from_config(self, cfg):
            return {}

    class OtherName(Nothing):
        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(AttributeError):
        Nothing()
    with pytest.raises(TypeError):
        NoClassmethod()
    with pytest.raises(TypeError):
        OtherName(CfgNode())


def test_documentation_survives():
    assert build.__name__ == "build" and callable(build.from_config)
    assert Head.__init__.__name__ == "__init__"
