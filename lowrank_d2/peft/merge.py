"""Moving updates into the weights: from an adapted model to the state dict of a plain one."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_d2.errors import DeltaError
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.peft.adapted import Adapted, AdaptedLinear
from lowrank_d2.peft.adapter import SequentialAdapter
from lowrank_d2.peft.trainable import added_names


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain model that computes the same, with every update inside its weight.

    Branches that only training uses are left out. `model` is not changed. Every merged linear layer is compared with the adapted one on random inputs.

    Raises:
        DeltaError: sequential adapters, which no weight can take up; a merged layer that differs or is not finite.
    """
    adapters = [name for name, module in model.named_modules() if isinstance(module, SequentialAdapter)]
    if adapters:
        raise DeltaError(
            f"{len(adapters)} adapters ({adapters[0]}, ...) stand between layers and cannot be merged into a weight. "
            "Keep the delta file beside its base, or train with METHODS ['lora']."
        )
    added = added_names(model) | training_only_names(model)
    merged = {name: tensor for name, tensor in model.state_dict().items() if name not in added}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Adapted):
            weight = module.effective_weight()
            _check(path, module, weight)
            merged[f"{path}.{module.weight_name}" if path else module.weight_name] = weight
    return merged


def _check(path: str, module: Adapted, weight: Tensor) -> None:
    got, want = _outputs(module, weight) if isinstance(module, AdaptedLinear) else (weight, weight)
    difference, largest = (got - want).abs().max().item(), want.abs().max().item()
    if not difference <= 64 * torch.finfo(weight.dtype).eps * max(largest, 1.0):
        raise DeltaError(
            f"The merged {path} differs from the adapted one by {difference:.3g} (outputs up to {largest:.3g}). "
            "Its tensors are not finite, or too large for this type: check the delta, and merge in float32."
        )


def _outputs(module: AdaptedLinear, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of the merged and of the adapted layer; eight tokens take the branched order, so that two computations meet."""
    was_training = module.training
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, module.in_features, generator=generator).to(weight)
    outputs = F.linear(x, weight, module.bias), module.eval()(x)
    module.train(was_training)
    return outputs
