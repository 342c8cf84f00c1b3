"""Where the file of MODEL.PEFT.DELTA lies: it may be named by any address that Detectron2's PathManager knows."""
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from lowrank_d2.errors import DeltaError


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
