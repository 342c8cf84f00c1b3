"""How an adapted model loads state dicts, through load_state_dict alone, so that every checkpointer works.

- A plain base: the methods' tensors are not missing, they keep their values, or are taken from the base where they
  depend on it and were not trained; then the configured delta is applied.
- A checkpoint of an adapted run (a resume): it has the methods' tensors, so the configured delta is left out. Such a
  state dict carries the methods in its metadata, where rank and alpha are compared.
- A delta file: refused, because the base would stay random.

What no plain base has brought so far is kept as `model.peft_unloaded`, for `check_frozen`.
"""
import logging
from typing import Any, Mapping

from torch import Tensor, nn

from lowrank_d2.errors import CheckpointError, DeltaError
from lowrank_d2.peft.adapted import adapted_modules
from lowrank_d2.peft.config import difference, method_fields, method_from_fields
from lowrank_d2.peft.delta import MARKER, load_delta
from lowrank_d2.peft.trainable import added_names

logger = logging.getLogger(__name__)

_METADATA_KEY = "lowrank_d2_methods"


def attach_hooks(model: nn.Module) -> None:
    """Registers the three hooks below; they are plain functions, so that the model can be copied and pickled."""
    model.register_state_dict_post_hook(_record_methods)
    handle = model.register_load_state_dict_pre_hook(_before_load)
    # First of all: a model that renames tensors should not have to understand a delta before it is refused.
    model._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)
    model.register_load_state_dict_post_hook(_after_load)


def _record_methods(model: nn.Module, state: Mapping[str, Tensor], prefix: str, local_metadata: dict[str, Any]) -> None:
    if not model.peft_config.is_plain:
        local_metadata[_METADATA_KEY] = [method_fields(method) for method in model.peft_config.methods]


def _before_load(
    model, state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_messages
) -> None:
    if prefix + MARKER in state:
        raise CheckpointError(
            "The weights are a delta file: it holds only what was trained and needs its base. "
            "Set MODEL.WEIGHTS to the base and MODEL.PEFT.DELTA to this file."
        )
    recorded, ours = local_metadata.get(_METADATA_KEY), model.peft_config.methods
    if recorded:  # an empty list: only base parameters trained, and they may be the base of any method
        try:
            found = difference([method_from_fields(fields) for fields in recorded], ours)
        except DeltaError as error:
            raise CheckpointError(f"The checkpoint cannot be resumed: {error}.") from error
        if found:
            raise CheckpointError(f"The checkpoint {found}. Set MODEL.PEFT as in the config.yaml of its run.")
    resumes = bool(recorded) or (recorded == [] and not ours)
    model.loading = (prefix, resumes)  # for _after_load, which torch does not tell the metadata


def _after_load(model: nn.Module, incompatible: Any) -> None:
    prefix, resumes = model.__dict__.pop("loading")
    added, missing = {prefix + name for name in added_names(model)}, set(incompatible.missing_keys)
    if resumes or (added and not added <= missing):
        absent = sorted(added & missing)
        if absent:
            raise CheckpointError(
                f"The checkpoint of an adapted model lacks {len(absent)} of its {len(added)} added tensors, first "
                f"{absent[0]}. Load the checkpoint that the run wrote last, or the plain base."
            )
        model.peft_unloaded = set()
        return
    for _, module in adapted_modules(model):
        module.follow_base()
    provided = set(added)
    if model.peft_config.delta:
        header = load_delta(model, model.peft_config.delta)
        logger.info(
            "Applied the delta %s: %d tensors, classes %s", model.peft_config.delta, len(header.tensors), ", ".join(header.class_names)
        )
        provided |= {prefix + name for name in header.tensors}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in provided]
    unloaded = {name.removeprefix(prefix) for name in incompatible.missing_keys}
    model.peft_unloaded = unloaded & getattr(model, "peft_unloaded", unloaded)
