"""The operators as PyTorch sees them: schemas, shapes of results, gradients, autocast. The compiled libraries add kernels.

`torch.ops.lowrank_d2.ms_deform_attn(value, spatial_shapes, places, weights, reference)`, where spatial_shapes is
[H0, W0, H1, W1, ...]. Without a reference, places are locations and weights are attention weights, as in
`ms_deform_attn`. With one, (N or 1, Q, L or 1, 2 or 4), places are offsets and weights are logits, as in
`ms_deform_attn_from_offsets`; a reference has no gradient here.

Schemas are defined here and not in the libraries: two libraries that define one namespace crash the process.
"""
from typing import Any, Optional, Sequence

import torch
from torch import Tensor

ABI = 2  # of these schemas; the libraries export theirs
NAMESPACE = "lowrank_d2"
NAME = f"{NAMESPACE}::ms_deform_attn"
BACKWARD = f"{NAME}_backward"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor places, Tensor weights, Tensor? reference) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "ms_deform_attn_backward(Tensor grad_out, Tensor value, SymInt[] spatial_shapes, Tensor places, Tensor weights, "
    "Tensor? reference, bool for_value, bool for_points) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)

# What `layers.points` and `layers.draws` do with PyTorch's operators elsewhere, for float32 on the CPU (csrc/cpu/masks.h).
# None has a gradient: those who call them have one.
_library.define("masks_at_points(Tensor masks, Tensor points, Tensor? rows) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_library.define(
    "masks_at_points_backward(Tensor grad, Tensor points, SymInt height, SymInt width) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "least_certain_points(Tensor masks, Tensor candidates, SymInt keep) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
_library.define("uniform_numbers(int seed, int count) -> Tensor", tags=torch.Tag.pt2_compliant_tag)

# The CUDA library asks at every backward pass, also of a compiled or recorded one, and then adds in one order. On the CPU
# there is but one order.
_library.define("deterministic() -> bool")
_library.impl("deterministic", torch.are_deterministic_algorithms_enabled, "CompositeExplicitAutograd")


@torch.library.register_fake(NAME)
def _(value: Tensor, spatial_shapes: Sequence[int], places: Tensor, weights: Tensor, reference: Optional[Tensor]) -> Tensor:
    n, _, m, d = value.shape
    return value.new_empty((n, weights.shape[1], m * d))


@torch.library.register_fake(BACKWARD)
def _(
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    places: Tensor,
    weights: Tensor,
    reference: Optional[Tensor],
    for_value: bool,
    for_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    needed = (value, for_value), (places, for_points), (weights, for_points)
    value, places, weights = (x.new_empty(x.shape if wanted else 0) for x, wanted in needed)
    return value, places, weights


@torch.library.register_fake(f"{NAMESPACE}::masks_at_points")
def _(masks: Tensor, points: Tensor, rows: Optional[Tensor]) -> Tensor:
    return points.new_empty(points.shape[:2])


@torch.library.register_fake(f"{NAMESPACE}::masks_at_points_backward")
def _(grad: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    return grad.new_empty((len(grad), height, width))


@torch.library.register_fake(f"{NAMESPACE}::least_certain_points")
def _(masks: Tensor, candidates: Tensor, keep: int) -> Tensor:
    return candidates.new_empty((len(candidates), keep, 2))


def _keep_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    value, ctx.spatial_shapes, places, weights, reference = inputs
    ctx.save_for_backward(value, places, weights, reference)


def _gradients(ctx: Any, grad_out: Tensor) -> tuple[Optional[Tensor], ...]:
    value, places, weights, reference = ctx.saved_tensors
    for_value, _, for_places, for_weights, _ = ctx.needs_input_grad
    grads = torch.ops.lowrank_d2.ms_deform_attn_backward(
        grad_out, value, ctx.spatial_shapes, places, weights, reference, for_value, for_places or for_weights
    )
    return (
        grads[0] if for_value else None,
        None,
        grads[1] if for_places else None,
        grads[2] if for_weights else None,
        None,
    )


def _refuse_second_gradient(ctx: Any, *grads: Tensor) -> None:
    # Without this, autograd would take the first gradient for a constant and lose the second in silence.
    raise RuntimeError(
        "ms_deform_attn has no second derivative in its compiled form. Set LOWRANK_D2_OPS=torch to use the PyTorch form "
        "with torch.func or create_graph=True."
    )


torch.library.register_autograd(NAME, _gradients, setup_context=_keep_inputs)
torch.library.register_autograd(BACKWARD, _refuse_second_gradient)


def _under_autocast(device: str) -> None:
    """Casts what is summed to autocast's type; places and logits keep theirs, half a pixel is too coarse for them."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def cast(
        value: Tensor, spatial_shapes: Sequence[int], places: Tensor, weights: Tensor, reference: Optional[Tensor]
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if value.dtype != torch.float64:
                value = value.to(dtype)
                weights = weights if reference is not None else weights.to(dtype)
            return torch.ops.lowrank_d2.ms_deform_attn(value, spatial_shapes, places, weights, reference)

    _library.impl("ms_deform_attn", cast, f"Autocast{device.upper()}")


_under_autocast("cpu")
_under_autocast("cuda")
