"""Process-wide setup: seeds, optional user module, import of files by path."""
import importlib
import importlib.util
import logging
import os
import random
import sys
from datetime import datetime

import numpy as np
import torch

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
DOC_BUILDING = os.getenv("_DOC_BUILDING", "") not in ("", "0")
_ENV_SETUP_DONE = False


def seed_all_rng(seed=None):
    """Seed Python's, numpy's and torch's generators; None takes a seed that differs in every process and call."""
    if seed is None:
        clock = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + clock + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info("Random seed of this process: %d", seed)
    random.seed(str(seed))
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def _import_file(module_name, file_path, make_importable=False):
    """Execute a Python file as module ``module_name``; ``make_importable`` enters it into ``sys.modules``."""
    found = importlib.util.spec_from_file_location(module_name, file_path)
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    if make_importable:
        sys.modules[module_name] = loaded
    return loaded


def setup_environment():
    """Run once when ``detectron2`` is imported: the user's ``$DETECTRON2_ENV_MODULE``, if set."""
    global _ENV_SETUP_DONE
    if _ENV_SETUP_DONE:
        return
    _ENV_SETUP_DONE = True
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module):
    """Import a module, by dotted name or by the path of a ``.py`` file, and call its ``setup_environment()``."""
    is_file = custom_module.endswith(".py")
    name = "detectron2.utils.env.custom_module"
    module = _import_file(name, custom_module) if is_file else importlib.import_module(custom_module)
    setup = getattr(module, "setup_environment", None)
    assert callable(setup), f"{custom_module} (from DETECTRON2_ENV_MODULE) has no function setup_environment()."
    setup()


def fixup_module_metadata(module_name, namespace, keys=None):
    """Let the objects in ``namespace``, all or ``keys``, claim ``module_name`` as their module, for documentation."""
    for key in namespace.keys() if keys is None else keys:
        if not key.startswith("_"):
            _claim(namespace.get(key), module_name, set())


def _claim(obj, module_name, seen):
    origin = getattr(obj, "__module__", None)
    if id(obj) in seen or not isinstance(origin, str) or not origin.startswith("detectron2."):
        return
    seen.add(id(obj))
    obj.__module__ = module_name
    if isinstance(obj, type):
        for member in vars(obj).values():
            _claim(member, module_name, seen)
