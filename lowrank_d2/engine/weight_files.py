"""Weights for and from others: merged checkpoints, files under the original's names, deltas from the adapter fork."""
import json
import re
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from safetensors.torch import save_file
from torch import Tensor

from lowrank_d2.engine.checkpoint import LowRankCheckpointer, read_checkpoint, stored_class_names, verify_weights
from lowrank_d2.engine.defaults import project_package
from lowrank_d2.engine.own_data import with_classes
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.errors import CheckpointError, ConfigError
from lowrank_d2.files import PathLike, replacing
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.modeling.delta_file import local_delta
from lowrank_d2.modeling.maskdino import weights as maskdino
from lowrank_d2.modeling.maskdino.fork import load_tuned
from lowrank_d2.peft import DeltaHeader, merge, read_header, save_delta
from lowrank_d2.peft.delta import MARKER


def _to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names, whichever they had; without the batch counters that only a batch norm in training knows."""
    ours = maskdino.from_upstream(tensors) if maskdino.is_upstream(tensors) else tensors
    return {name: tensor for name, tensor in ours.items() if not name.endswith(".num_batches_tracked")}


# Names of `convert_weights` -> a function from our state dict, or the original's, to that format's.
FORMATS: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "maskdino": maskdino.to_upstream,
    "lowrank_d2": _to_ours,
}
# Further names -> the meta-architecture of the project whose `to_upstream` writes that format.
PROJECT_FORMATS: Mapping[str, str] = {"seem": "SEEM"}
# What the methods of `peft` call their tensors.
_ADDED = re.compile(r"(^|\.)(lora_|hada_|lokr_|adapter\.)")


def write_weights(tensors: Mapping[str, Tensor], path: PathLike, metadata: Optional[Mapping[str, str]] = None) -> None:
    """Writes a state dict atomically: .safetensors with `metadata`, or .pth as {"model": tensors}.

    Raises:
        ConfigError: another ending.
        OutputError: the file cannot be written.
    """
    check_ending(path)
    # Copies, because tensors that share memory (one head under several names) are refused by safetensors.
    plain = torch.contiguous_format
    stored = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        if str(path).endswith(".safetensors"):
            save_file(stored, str(temporary), metadata=dict(metadata or {}))
        else:
            torch.save({"model": stored}, temporary)


def check_ending(path: PathLike) -> None:
    """Raises ConfigError for an output that is neither .safetensors nor .pth."""
    if Path(path).suffix not in (".safetensors", ".pth"):
        raise ConfigError(f"The output {path} ends in {Path(path).suffix!r}. Use .safetensors or .pth.")


def merge_delta(cfg: CfgNode, delta: PathLike, output: PathLike) -> DeltaHeader:
    """Builds the model of `cfg` with its base weights and `delta`; writes a plain checkpoint that computes the same.

    Returns:
        The delta's header; a model that takes the file needs its number of classes.

    Raises:
        LowRankError: MODEL.WEIGHTS is empty, the delta does not fit it or cannot be merged, `output` cannot be written.
    """
    check_ending(output)
    _check_base(cfg)
    delta = local_delta(str(delta))
    header = read_header(delta)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PEFT.DELTA = delta
    model = LowRankTrainer.build_model(cfg).eval()
    LowRankCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    write_weights(merge(model), output, {"class_names": json.dumps(header.class_names)})
    return header


def drop_branches(cfg: CfgNode, output: PathLike) -> list[str]:
    """Builds the model of `cfg` with MODEL.WEIGHTS, which a run with branches wrote, and writes it without them.

    Returns:
        The names of its classes; [] where the run did not record them.

    Raises:
        LowRankError: MODEL.WEIGHTS is empty or does not fit, there are no branches, `output` cannot be written.
    """
    check_ending(output)
    _check_base(cfg)
    names = stored_class_names(cfg.MODEL.WEIGHTS)
    model = LowRankTrainer.build_model(with_classes(cfg, names) if names else cfg).eval()
    if not training_only_names(model):
        raise ConfigError(
            "There is nothing to merge: no delta is named, and MODEL.LORA_DETR.K describes no branches that could be "
            "left out. Add --delta D, or use the configuration of the run that wrote MODEL.WEIGHTS."
        )
    LowRankCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    write_weights(merge(model), output, {"class_names": json.dumps(names)})
    return names


def convert_weights(to: str, source: PathLike, output: PathLike) -> int:
    """Reads a checkpoint and writes its weights alone under the names of `to`, one of `FORMATS` or `PROJECT_FORMATS`.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: the file is damaged, a delta, adapted but not merged, or has the other names already.
    """
    check_ending(output)
    tensors = _tensors_of(source)
    if MARKER in tensors:
        raise CheckpointError(f"{source} is a delta file. Merge it with its base first (tools/merge.py).")
    if to != "lowrank_d2" and maskdino.is_upstream(tensors):
        raise CheckpointError(f"{source} has the original's names already. Use it as it is.")
    if to in PROJECT_FORMATS:
        _check_plain(tensors, source)
    convert = FORMATS.get(to) or project_package(PROJECT_FORMATS[to]).to_upstream
    converted = convert(tensors)
    write_weights(converted, output)
    return len(converted)


def convert_tuned(cfg: CfgNode, source: PathLike, output: PathLike, class_names: Sequence[str] = ()) -> DeltaHeader:
    """Writes a tuned checkpoint of the paper authors' fork, which lacks the base, as a delta.

    Args:
        cfg: the dump of the run that wrote `source`, with the run's base as MODEL.WEIGHTS.
        output: ends in .safetensors.
        class_names: in the order of the model's outputs; (): those of the first of DATASETS.TRAIN.

    Raises:
        CheckpointError: `source` or the base is missing or damaged, or holds something else than `cfg` trains.
        ConfigError: no base, another ending, or not as many names as classes.
    """
    if Path(output).suffix != ".safetensors":
        raise ConfigError(f"The output {output} ends in {Path(output).suffix!r}. A delta file ends in .safetensors.")
    _check_base(cfg)
    names = list(class_names) or _class_names(cfg)
    if len(names) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}, but the class names are "
            f"{', '.join(names) or 'unknown'}. Give them all with --class-names A,B,..., in the order of the outputs."
        )
    tuned = _tensors_of(source)
    model = LowRankTrainer.build_model(cfg)
    LowRankCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    load_tuned(model, tuned)
    return save_delta(model, output, class_names=names)


def _class_names(cfg: CfgNode) -> list[str]:
    registered = [name for name in cfg.DATASETS.TRAIN[:1] if name in DatasetCatalog.list()]
    return [each for name in registered for each in MetadataCatalog.get(name).get("thing_classes", [])]


def _check_base(cfg: CfgNode) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty. Set it to the base that the delta was trained on.")
    verify_weights(cfg)


def _check_plain(tensors: Mapping[str, Tensor], source: PathLike) -> None:
    added = [name for name in tensors if _ADDED.search(name)]
    if added:
        raise CheckpointError(
            f"{source} is adapted: the original has no place for {len(added)} tensors, {added[0]} among them. Merge the "
            "delta of its run with the base first (tools/merge.py); adapters cannot be merged."
        )


def _tensors_of(source: PathLike) -> dict[str, Tensor]:
    """The state dict of a checkpoint without what is no tensor."""
    if not Path(source).is_file():
        raise CheckpointError(f"The weights {source} do not exist. Check the path.")
    return {name: value for name, value in read_checkpoint(str(source))["model"].items() if isinstance(value, Tensor)}
