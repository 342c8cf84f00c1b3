"""What MODEL.PEFT.DELTA says of a model; the file may be named by any address that Detectron2's PathManager knows."""
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.peft import PeftConfig, read_header


def local_delta(path: str) -> str:
    """`path` as a path of this machine; an address is fetched first.

    Raises:
        DeltaError: it cannot be fetched.
    """
    try:
        return PathManager.get_local_path(path)
    except Exception as error:  # every handler has errors of its own
        raise DeltaError(f"The delta {path} cannot be fetched: {error}. Correct MODEL.PEFT.DELTA.") from error


def with_local_delta(cfg: CfgNode) -> CfgNode:
    """`cfg`, or a copy in which MODEL.PEFT.DELTA is a path of this machine."""
    path = cfg.MODEL.PEFT.DELTA
    if not isinstance(path, str) or "://" not in path:
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.PEFT.DELTA = local_delta(path)
    if frozen:
        cfg.freeze()
    return cfg


def with_delta(cfg: CfgNode) -> tuple[CfgNode, PeftConfig]:
    """`cfg` and its methods; with MODEL.PEFT.DELTA a copy with that file's classes, and the methods of the file.

    The names of the classes are the file's where MODEL.CLASS_NAMES is empty.

    Raises:
        ConfigError: a delta without the base that it belongs to, or a wrong value of MODEL.PEFT.
        DeltaError: the file cannot be fetched or read.
    """
    cfg = with_local_delta(cfg)
    peft = PeftConfig.from_node(cfg.MODEL.PEFT)
    if not peft.delta:
        return cfg, peft
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"MODEL.PEFT.DELTA is {peft.delta}, but MODEL.WEIGHTS is empty: a delta holds only what was tuned. Set "
            "MODEL.WEIGHTS to the base checkpoint that it was trained on."
        )
    header = read_header(peft.delta)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = header.num_classes
    cfg.MODEL.CLASS_NAMES = cfg.MODEL.CLASS_NAMES or list(header.class_names)
    cfg.freeze()
    return cfg, peft.with_header(header)
