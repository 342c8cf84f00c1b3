from collections import Counter

import pytest
from detectron2.config import LazyCall, LazyConfig, instantiate
from omegaconf import OmegaConf


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "common.py").write_text("lr = 0.5\nsettings = {'a': 1, 'b': {'c': 2}}\n_hidden = {'x': 1}\n")
    (tmp_path / "main.py").write_text(
        "from collections import Counter\n"
        "from detectron2.config import LazyCall as L\n"
        "from .sub.common import settings, lr\n"
        "settings.a = 'changed'\n"
        "from .sub.common import settings as fresh\n"
        "model = L(Counter)(x=lr)\n"
        "number = 3\n"
        "_private = dict(y=1)\n"
    )
    return tmp_path


def test_relative_imports_run_afresh(folder):
    cfg = LazyConfig.load(str(folder / "main.py"))
    assert set(cfg) == {"settings", "fresh", "model"}
    assert (cfg.settings.a, cfg.fresh.a) == ("changed", 1)
    assert instantiate(cfg.model) == Counter(x=0.5)


def test_keys(folder):
    path = str(folder / "main.py")
    assert LazyConfig.load(path, "number") == 3
    number, private = LazyConfig.load(path, ("number", "_private"))
    assert (number, private.y) == (3, 1)


@pytest.mark.parametrize("text, message", [("from . import x", "relative import"), ("from .no import x", "not exist")])
def test_bad_imports(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(str(tmp_path / "bad.py"))


def test_other_files():
    with pytest.raises(ValueError):
        LazyConfig.load("config.json")


def test_load_rel(folder):
    (folder / "rel.py").write_text(
        "from detectron2.config import LazyConfig\nx = LazyConfig.load_rel('sub/common.py', 'settings')\n"
    )
    assert LazyConfig.load(str(folder / "rel.py")).x.b.c == 2


def test_save_and_load(folder):
    cfg = LazyConfig.load(str(folder / "main.py"))
    path = str(folder / "saved.yaml")
    LazyConfig.save(cfg, path)
    again = LazyConfig.load(path)
    assert again.model._target_ == "collections.Counter" and again.settings == cfg.settings
    assert instantiate(again.model) == Counter(x=0.5)
    assert cfg.model._target_ is Counter  # the saved object stays as it is


def test_what_yaml_cannot_hold_is_pickled(tmp_path):
    cfg = LazyCall(Counter)(x=1)
    cfg.function = lambda: 3
    path = tmp_path / "odd.yaml"
    LazyConfig.save(cfg, str(path))
    assert path.exists() and (tmp_path / "odd.yaml.pkl").stat().st_size > 0


def test_overrides(folder):
    cfg = LazyConfig.load(str(folder / "main.py"))
    LazyConfig.apply_overrides(
        cfg,
        ["model.x=7", "settings.b.c=1e-4", "settings.name=word", "settings.l=[1,2]", 'fresh.a="5"', "+new.key=null"],
    )
    assert cfg.model.x == 7 and cfg.settings.b.c == 1e-4 and cfg.settings.name == "word"
    assert cfg.settings.l == [1, 2] and cfg.fresh.a == "5" and cfg.new.key is None
    with pytest.raises(KeyError):
        LazyConfig.apply_overrides(cfg, ["model.x.deep=1"])
    with pytest.raises(NotImplementedError):
        LazyConfig.apply_overrides(cfg, ["~model.x"])


def test_to_py():
    cfg = OmegaConf.create({"data": {"names": ["a", 'say "b"'], "deep": {"n": None}}}, flags={"allow_objects": True})
    cfg.model = LazyCall(Counter)(z=1.5, a=True)
    cfg.data.long = ["a string of some length"] * 4
    assert LazyConfig.to_py(cfg) == (
        "cfg.data.deep.n = None\n"
        "cfg.data.long = [\n" + '    "a string of some length",\n' * 4 + "]\n"
        """cfg.data.names = ["a", 'say "b"']\n"""
        "cfg.model = collections.Counter(a=True, z=1.5)\n"
    )


def test_targets_must_be_callable():
    with pytest.raises(TypeError):
        LazyCall(3)
