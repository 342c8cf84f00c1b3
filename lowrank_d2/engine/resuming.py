"""What a resumed run may differ in, and what it may not."""
import logging
from typing import Any, Dict, List

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from lowrank_d2.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# Changing these changes nothing that has been computed, or only when the run ends, saves and evaluates.
_FREE = (
    "OUTPUT_DIR", "VIS_PERIOD", "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "DATALOADER.TIMEOUT", "MODEL.DEVICE",
    "MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.",
)
# These decide the model, its data or what the optimizer's state means.
_FIXED = (
    "DATASETS.TRAIN", "DATALOADER.", "MODEL.", "INPUT.", "SEED", "SOLVER.OPTIMIZER", "SOLVER.IMS_PER_BATCH",
    "SOLVER.ACCUMULATE", "SOLVER.AMP.",
)


def trainer_state(checkpoint: Dict[str, Any], path: str) -> Dict[str, Any]:
    """The trainer's part of a checkpoint.

    Raises:
        CheckpointError: the file was written by another program, so that an exact resume is impossible.
    """
    state = checkpoint.get("trainer")
    if not isinstance(state, dict) or not {"iterations", "random", "optimizer", "config"} <= set(state):
        raise CheckpointError(
            f"{path} holds no state of this trainer to resume from. Start from its weights: leave out --resume and set "
            "MODEL.WEIGHTS to it, in another OUTPUT_DIR."
        )
    return state


def checked_config(cfg: CfgNode, state: Dict[str, Any], own_seed: bool) -> CfgNode:
    """`cfg`, compared with the saved run's; with that run's SEED unless the user chose one (`own_seed`).

    Harmless differences to the saved run are silent, others a warning.

    Raises:
        ConfigError: model, data, optimizer or the number of processes differ.
    """
    world = len(state["random"])
    if world != comm.get_world_size():
        raise ConfigError(
            f"The run to resume used {world} processes, now there are {comm.get_world_size()}. Use --num-gpus or "
            f"--num-processes {world}."
        )
    saved = yaml.safe_load(state["config"])
    if not own_seed:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SEED = saved["SEED"]
        cfg.freeze()
    old, new = _leaves(saved), _leaves(yaml.safe_load(cfg.dump()))
    changes = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
    changes = {key: values for key, values in changes.items() if not key.startswith(_FREE)}
    fixed = [key for key in changes if key.startswith(_FIXED)]
    if fixed:
        raise ConfigError(
            f"The run to resume was started with another configuration: {_listed(fixed, changes)}. Set these back, or "
            "start anew in another OUTPUT_DIR."
        )
    if changes:
        logger.warning("The resumed run differs from the one that was started: %s", _listed(list(changes), changes))
    return cfg


def plain(value: Any) -> Any:
    """Mappings as dicts and numbers as Python's, so that a checkpoint holds no foreign classes."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return float(value) if hasattr(value, "__float__") else value


def _listed(keys: List[str], changes: Dict[str, tuple]) -> str:
    return ", ".join(f"{key} was {changes[key][0]!r}, is {changes[key][1]!r}" for key in keys)


def _leaves(tree: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found.update(_leaves(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
