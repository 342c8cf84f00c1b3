"""``CfgNode`` with versioned files, the default and the global configuration, and ``@configurable``."""
import functools
import inspect
import logging
import os
from collections.abc import Mapping

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _CfgNode
from omegaconf import DictConfig

from detectron2.utils.file_io import PathManager


class _TupleLoader(yaml.SafeLoader):
    """Plain yaml and ``!!python/tuple``, which old dumps contain. No other tag can run code or name an object."""

    def construct_python_tuple(self, node):
        return tuple(self.construct_sequence(node, deep=True))


_TupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", _TupleLoader.construct_python_tuple)


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode`` whose files are opened through Detectron2's PathManager and may be of an older version.

    Merging checks types: a list and a tuple replace each other (the old type is kept), None replaces and is replaced
    by anything, every other difference is a ValueError, int for float too.
    """

    @classmethod
    def _open_cfg(cls, filename):
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename, allow_unsafe=False):
        """Read a yaml file into a dict, on top of the file or files that its ``_BASE_`` names, relative to its folder.

        ``allow_unsafe`` also accepts ``!!python/tuple``, the one yaml tag that Detectron2's own dumps need.
        """
        with cls._open_cfg(filename) as file:
            text = file.read()
        try:
            loaded = yaml.safe_load(text)
        except yaml.constructor.ConstructorError:
            if not allow_unsafe:
                raise
            loaded = yaml.load(text, Loader=_TupleLoader)
        own = {} if loaded is None else loaded
        if not isinstance(own, dict):
            raise ValueError(f"{filename} holds a {type(own).__name__}; a config file is a yaml mapping KEY: value.")

        bases = own.pop(BASE_KEY, [])
        merged = {}
        for base in bases if isinstance(bases, list) else [bases]:
            path = _resolve_base(base, filename)
            _merge_over(merged, cls.load_yaml_with_base(path, allow_unsafe=allow_unsafe))
        _merge_over(merged, own)
        return merged

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a yaml file, of this VERSION or older; KeyError for an unknown key, ValueError for another type."""
        assert PathManager.isfile(cfg_filename), f"There is no config file {cfg_filename!r}."
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))

        from .compat import downgrade_config, guess_version, upgrade_config
        from .defaults import _C

        latest = _C.VERSION
        assert self.VERSION == latest, f"Files merge only into a config of version {latest}, not {self.VERSION}."
        version = loaded.get("VERSION", None)
        if version is None:
            version = guess_version(loaded, cfg_filename)
        assert version <= latest, f"{cfg_filename} has VERSION {version}; this Detectron2 knows configs up to {latest}."
        if version == latest:
            self.merge_from_other_cfg(loaded)
            return
        message = "%s is written for config version %d; translating it to version %d."
        logging.getLogger(__name__).warning(message, cfg_filename, version, latest)
        old = downgrade_config(self, to_version=version)
        old.merge_from_other_cfg(loaded)
        new = upgrade_config(old)
        self.clear()
        self.update(new)


def _resolve_base(base: str, filename: str) -> str:
    """Where a ``_BASE_`` in ``filename`` points to."""
    base = os.path.expanduser(base)
    if base.startswith("/") or "://" in base:
        return base
    return os.path.join(os.path.dirname(filename), base)


def _merge_over(below: dict, above: dict) -> None:
    """Put ``above`` over ``below`` in place, key by key wherever both hold a mapping."""
    for key, value in above.items():
        if isinstance(value, dict) and key in below:
            assert isinstance(below[key], dict), f"{key} is a value in the base and a group of keys in the file."
            _merge_over(below[key], value)
        else:
            below[key] = value


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh copy of the default configuration."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make ``cfg`` the content of the one ``global_cfg`` object, for code that cannot be handed a configuration."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func=None, *, from_config=None):
    """Let a class or function with explicit arguments also be called with a configuration.

    On ``__init__`` (bare): the class defines a classmethod ``from_config(cls, cfg, ...)`` that returns the arguments
    as a dict. On a function: ``@configurable(from_config=f)`` with ``f(cfg, ...)``. The call counts as one with a
    configuration if its first positional argument or its keyword ``cfg`` is a CfgNode or DictConfig; ``from_config``
    then gets all arguments that it takes, and the remaining keywords override what it returns.

    AttributeError if the class has no ``from_config``; TypeError if that is no classmethod, or has another first name.
    """
    if init_func is not None:
        if from_config is not None or not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise TypeError("@configurable without arguments belongs on __init__ only.")
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # "@configurable()" is "@configurable"
    if not inspect.isfunction(from_config):
        raise TypeError("@configurable(from_config=...) wants a function.")

    def decorate(func):
        @functools.wraps(func)
        def wrapped(*args, **kwargs):
            if _called_with_cfg(*args, **kwargs):
                return func(**_get_args_from_config(from_config, *args, **kwargs))
            return func(*args, **kwargs)

        wrapped.from_config = from_config
        return wrapped

    return decorate


def _configurable_init(init_func):
    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        cls = type(self)
        from_config = getattr(cls, "from_config", None)
        if from_config is None:
            raise AttributeError(f"{cls.__name__} is @configurable, so it needs a classmethod from_config(cls, cfg).")
        if not inspect.ismethod(from_config):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod.")
        if _called_with_cfg(*args, **kwargs):
            init_func(self, **_get_args_from_config(from_config, *args, **kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _called_with_cfg(*args, **kwargs) -> bool:
    configs = (_CfgNode, DictConfig)
    return bool(args and isinstance(args[0], configs)) or isinstance(kwargs.get("cfg"), configs)


def _get_args_from_config(from_config_func, *args, **kwargs) -> Mapping:
    """The explicit arguments that a call with a configuration means."""
    parameters = inspect.signature(from_config_func).parameters
    if next(iter(parameters), None) != "cfg":
        owner = getattr(from_config_func, "__self__", from_config_func)
        raise TypeError(f"The first parameter of from_config of {owner.__name__} must be called 'cfg'.")
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        return from_config_func(*args, **kwargs)
    # Positional arguments are never forwarded: which of the two signatures they meant would be a guess.
    taken = {name: kwargs.pop(name) for name in list(kwargs) if name in parameters}
    return {**from_config_func(*args, **taken), **kwargs}
