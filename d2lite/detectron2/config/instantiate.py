"""Building objects from configurations that say what to call with what."""
import collections.abc as abc
import dataclasses
import logging
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import _convert_target_to_string, locate


def dump_dataclass(obj: Any):
    """A dataclass instance as the mapping from which :func:`instantiate` builds an equal one."""
    assert dataclasses.is_dataclass(obj) and not isinstance(obj, type), f"{obj!r} is no instance of a dataclass."
    mapping = {"_target_": _convert_target_to_string(type(obj))}
    for field in dataclasses.fields(obj):
        value = getattr(obj, field.name)
        if dataclasses.is_dataclass(value):
            value = dump_dataclass(value)
        elif isinstance(value, (list, tuple)):
            value = [dump_dataclass(item) if dataclasses.is_dataclass(item) else item for item in value]
        mapping[field.name] = value
    return mapping


def instantiate(cfg):
    """What calling the ``_target_`` of a mapping with its other entries returns, innermost mappings first.

    ``_target_`` is a callable or its dotted name. Lists are gone through; anything else is returned as it is. In an
    omegaconf tree, lists and plain mappings stay omegaconf objects.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):  # other sequences, tuples and strings above all, are values
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, abc.Mapping) and "_target_" in cfg):
        return cfg

    arguments = {key: instantiate(value) for key, value in cfg.items()}
    target = arguments.pop("_target_")
    name = target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))
    target = locate(target) if isinstance(target, str) else target
    assert callable(target), f"_target_ {name!r} is {target!r}, which cannot be called."
    try:
        return target(**arguments)
    except TypeError:
        logging.getLogger(__name__).error("Cannot build %s with the arguments %s.", name, sorted(arguments))
        raise
