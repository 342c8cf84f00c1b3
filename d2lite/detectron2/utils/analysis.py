"""Counting parameters, operations and activations of a detector, on top of fvcore."""
import typing

import fvcore.nn
from fvcore.nn import parameter_count, parameter_count_table
from torch import nn

from detectron2._lite import refused

__all__ = ["activation_count_operators", "flop_count_operators", "parameter_count_table", "parameter_count"]


FLOPS_MODE = "flops"
ACTIVATIONS_MODE = "activations"


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's count for modules whose inputs are tensors; element-wise operators count as nothing, silently."""

    def __init__(self, model, inputs):
        super().__init__(model, inputs)
        self.unsupported_ops_warnings(False)


# Counting a whole detector means tracing list[dict] -> list[dict], the work of export.TracingAdapter.
flop_count_operators = refused("flop_count_operators", __name__)
activation_count_operators = refused("activation_count_operators", __name__)


def find_unused_parameters(model: nn.Module, inputs: typing.Any) -> list[str]:
    """Names of the parameters without gradient after one training step on ``inputs``, an argument or a tuple."""
    assert model.training, "Unused parameters show in a training step: call model.train() first."
    model.zero_grad(set_to_none=True)
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    (sum(losses.values()) if isinstance(losses, dict) else losses).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
