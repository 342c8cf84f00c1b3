"""Branches come and go between a checkpoint and a model: they serve training alone."""
import logging

from torch import Tensor, nn

from lowrank_d2.layers.branches import training_only_names


def settle_branches(tensors: dict[str, Tensor], model: nn.Module, logger: logging.Logger) -> None:
    """Makes a state dict have the branches of `model`, in place, before it is loaded.

    Branches that the file lacks, or has in other numbers or ranks, keep the model's values; those that the model lacks
    are taken out.

    Args:
        tensors: under the model's names.
    """
    given = {name for name in tensors if ".branches." in name}
    expected = training_only_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in expected}
    if given == expected and all(tensors[name].shape == state[name].shape for name in given):
        return
    for name in given:
        del tensors[name]
    tensors |= state
    if given and expected:
        logger.warning("The checkpoint has other branches than MODEL.LORA_DETR describes: the model's start anew.")
    elif given:
        logger.info("The checkpoint's branches are left out: they serve training, and the model has none.")
    else:
        logger.warning("The checkpoint has no branches: they start anew.")
