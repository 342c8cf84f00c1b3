"""Configurations written in Python: calls that are described now and made later."""
import ast
import builtins
import collections.abc as abc
import inspect
import logging
import os
import types
import uuid
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import is_dataclass

import cloudpickle
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string

_CFG_PACKAGE_NAME = "detectron2._cfg_loader"


class LazyCall:
    """``LazyCall(f)(a=1)`` describes the call ``f(a=1)``, for :func:`detectron2.config.instantiate` to make.

    ``f`` is a callable, its dotted name, or another description whose result is to be called. The description is a
    DictConfig of the keyword arguments and ``_target_``.
    """

    def __init__(self, target):
        if not (callable(target) or isinstance(target, (str, abc.Mapping))):
            raise TypeError(f"LazyCall wants something callable, its name or another LazyCall, not {target!r}.")
        self._target = target

    def __call__(self, **kwargs):
        by_name = is_dataclass(self._target)  # omegaconf would take a dataclass for a schema
        target = _convert_target_to_string(self._target) if by_name else self._target
        return DictConfig(content={**kwargs, "_target_": target}, flags={"allow_objects": True})


class LazyConfig:
    """Loading, saving and changing configurations that are Python or yaml files."""

    @staticmethod
    def load_rel(filename: str, keys: None | str | tuple[str, ...] = None):
        """As :meth:`load`, ``filename`` being relative to the file that calls."""
        caller = inspect.stack()[1].filename
        assert os.path.isfile(caller), "load_rel must be called in a file."
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: None | str | tuple[str, ...] = None):
        """Run a ``.py`` file, or read a ``.yaml`` or ``.yml`` file. Both may run any code: they must be trusted.

        In a Python file ``from .name import x`` means the file next to it; every import runs that file afresh, so
        that changing what was imported changes nobody else's.

        ``keys`` are the variable or variables to return, a str for one value, a tuple for a tuple; by default a
        DictConfig of all public global mappings. ValueError for another kind of file; ImportError for a relative import
        of a folder, or of a file that is not there.
        """
        filename = filename.replace("/./", "/")
        if filename.endswith(".py"):
            with _patch_import():
                values = _run_config_file(filename, {})
        elif filename.endswith((".yaml", ".yml")):
            with PathManager.open(filename) as file:
                values = OmegaConf.create(yaml.unsafe_load(file), flags={"allow_objects": True})
        else:
            raise ValueError(f"A lazy config is a .py, .yaml or .yml file; {filename!r} is not.")

        if isinstance(keys, str):
            return _cast_to_config(values[keys])
        if keys is not None:
            return tuple(_cast_to_config(values[key]) for key in keys)
        if not filename.endswith(".py"):
            return values
        names = [name for name, value in values.items() if isinstance(value, (dict, DictConfig)) and name[0] != "_"]
        return DictConfig({name: _cast_to_config(values[name]) for name in names}, flags={"allow_objects": True})

    @staticmethod
    def save(cfg, filename: str):
        """Write a configuration as yaml; what yaml cannot hold goes to ``filename + ".pkl"``, with a warning."""
        plain = deepcopy(cfg)
        _name_targets(plain)
        try:
            container = OmegaConf.to_container(plain, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
            text = yaml.dump(container, default_flow_style=None, allow_unicode=True, width=9999)
            yaml.unsafe_load(text)  # what cannot be read back is not saved
        except Exception as error:
            message = "The config cannot be written as yaml (%s); %s.pkl holds it instead."
            logging.getLogger(__name__).warning(message, error, filename)
            text = f"# This config cannot be written as yaml; {os.path.basename(filename)}.pkl holds it.\n{plain}\n"
            with PathManager.open(filename + ".pkl", "wb") as file:
                cloudpickle.dump(cfg, file)
        with PathManager.open(filename, "w") as file:
            file.write(text)

    @staticmethod
    def apply_overrides(cfg, overrides: list[str]):
        """Set values from ``["a.b=1", ...]`` in place and return ``cfg``; the grammar is hydra's if it is installed.

        A value that is neither a Python literal nor a yaml list is a string; a leading ``+`` or ``++`` means nothing.
        KeyError if the key goes through a value that has no keys; NotImplementedError for ``~a.b``, which deletes.
        """
        if any(text.startswith("~") for text in overrides):
            raise NotImplementedError(f"Overrides cannot delete keys: {overrides}. Delete the key in the file instead.")
        for key, value in _parse_overrides(overrides):
            _check_path(cfg, key)
            OmegaConf.update(cfg, key, value, merge=True)
        return cfg

    @staticmethod
    def to_py(cfg, prefix: str = "cfg."):
        """Show a configuration as Python-like text, for reading only."""
        return "".join(f"{line}\n" for line in _assignments(OmegaConf.to_container(cfg, resolve=True), prefix))


def _run_config_file(filename: str, namespace: dict) -> dict:
    """``namespace`` with the globals of a config file after it ran, as a package of its own: nothing is cached."""
    package = f"{_CFG_PACKAGE_NAME}.{uuid.uuid4().hex[:8]}.{os.path.basename(filename)}"
    namespace.update(__file__=filename, __package__=package)
    with PathManager.open(filename) as file:
        exec(compile(file.read(), filename, "exec"), namespace)
    return namespace


@contextmanager
def _patch_import():
    """Resolve relative imports in config files by path."""
    original = builtins.__import__

    def import_from_path(name, globals=None, locals=None, fromlist=(), level=0):
        package = (globals or {}).get("__package__") or ""
        if level == 0 or not package.startswith(_CFG_PACKAGE_NAME):
            return original(name, globals, locals, fromlist=fromlist, level=level)
        filename = _file_of_relative_import(globals["__file__"], name, level)
        module = types.ModuleType(os.path.basename(filename))
        _run_config_file(filename, vars(module))
        for wanted in fromlist or ():
            if wanted in vars(module):
                setattr(module, wanted, _cast_to_config(getattr(module, wanted)))
        return module

    builtins.__import__ = import_from_path
    try:
        yield
    finally:
        builtins.__import__ = original


def _file_of_relative_import(importer: str, name: str, level: int) -> str:
    folder = os.path.dirname(importer)
    for _ in range(level - 1):
        folder = os.path.dirname(folder)
    place = f"'from {'.' * level}{name} import ...' in {importer}"
    if not name:
        raise ImportError(f"{place}: a relative import in a config file names a file, not a folder.")
    filename = os.path.join(folder, *name.split(".")) + ".py"
    if not PathManager.isfile(filename):
        raise ImportError(f"{place}: the file of this relative import, {filename}, does not exist.")
    return filename


def _cast_to_config(obj):
    return DictConfig(obj, flags={"allow_objects": True}) if isinstance(obj, dict) else obj


def _name_targets(cfg):
    """Replace every callable ``_target_`` of a tree by its name."""
    if isinstance(cfg, DictConfig):
        if callable(cfg.get("_target_")):
            cfg["_target_"] = _convert_target_to_string(cfg["_target_"])
        for value in cfg.values():
            _name_targets(value)
    elif isinstance(cfg, ListConfig):
        for value in cfg:
            _name_targets(value)


def _parse_overrides(overrides: list[str]):
    """(key, value) of each override."""
    try:
        from hydra.core.override_parser.overrides_parser import OverridesParser
    except ImportError:
        return [_parse_override(text) for text in overrides]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [(item.key_or_group, item.value()) for item in parsed]


def _parse_override(text: str):
    key, equals, value = text.lstrip("+").partition("=")
    if not equals:
        raise ValueError(f"Cannot read the override {text!r}; write KEY=VALUE.")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value.startswith("["):
            return key, yaml.safe_load(value)
        return key, {"true": True, "false": False, "null": None}.get(value.lower(), value)


def _check_path(cfg, key: str):
    """omegaconf would replace a value by a group of keys without a word."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        node = OmegaConf.select(cfg, ".".join(parts[:depth]), default=None)
        if node is None:
            return
        if not OmegaConf.is_config(node):
            raise KeyError(f"Cannot set {key!r}: {'.'.join(parts[:depth])!r} is the value {node!r} and has no keys.")


_WIDTH = 88  # of a line of to_py, as black has it


def _assignments(cfg: dict, prefix: str):
    """``prefix.a.b = value`` for each leaf; a described call is a leaf."""
    for key, value in sorted(cfg.items()):
        name = f"{prefix}{key}"
        if isinstance(value, abc.Mapping) and value and "_target_" not in value and all(map(str.isidentifier, value)):
            yield from _assignments(value, f"{name}.")
        else:
            yield _as_python(value, f"{name} = ", "", "")


def _as_python(obj, before: str, after: str, indent: str) -> str:
    """``before`` + Python text + ``after``, one element a line where one line would be too long."""
    if isinstance(obj, abc.Mapping) and "_target_" in obj:
        target = obj["_target_"]
        opening, closing = (target if isinstance(target, str) else _convert_target_to_string(target)) + "(", ")"
        items = [(f"{key}=", obj[key]) for key in sorted(obj) if key != "_target_"]
    elif isinstance(obj, abc.Mapping):
        opening, closing = "{", "}"
        items = [(f"{_quoted(key)}: ", value) for key, value in obj.items()]
    elif isinstance(obj, (list, tuple)):
        opening, closing = "[", "]"
        items = [("", value) for value in obj]
    else:
        return f"{before}{_quoted(obj)}{after}"

    flat = ", ".join(_as_python(value, name, "", "") for name, value in items)
    line = f"{before}{opening}{flat}{closing}{after}"
    if not items or ("\n" not in flat and len(indent) + len(line) <= _WIDTH):
        return line
    deeper = indent + "    "
    lines = [deeper + _as_python(value, name, ",", deeper) for name, value in items]
    return "\n".join([f"{before}{opening}", *lines, f"{indent}{closing}{after}"])


def _quoted(value) -> str:
    """``repr`` with double quotes around text."""
    text = repr(value)
    return f'"{text[1:-1]}"' if text.startswith("'") and '"' not in text else text
