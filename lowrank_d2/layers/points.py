"""Masks compared at points instead of pixels (PointRend, arXiv:1912.08193; Mask2Former, arXiv:2112.01527, 3.3.3).

Points are (x, y) as fractions of the canvas: (0, 0) is the outer corner of the first pixel, (1, 1) that of the last.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.ms_deform_attn.backend import has_kernel
from lowrank_d2.layers.parallel import in_parallel

ROWS_AT_ONCE = 8  # whose order the processor caches while it is searched


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps at points; outside the canvas a map is zero.

    Args:
        maps: (N, C, H, W) floating point.
        points: (N, A, B, 2): any two dimensions of points for each map.

    Returns:
        (N, C, A, B).
    """
    # grid_sample is three times slower on a transposed grid, and arithmetic keeps the transposition.
    grid = points.contiguous().mul(2).sub_(1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def masks_at(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of each mask at its own points, without a gradient: (R, H, W) and (R, P, 2) -> (R, P)."""
    if _compiled(masks, points):
        return torch.ops.lowrank_d2.masks_at_points(masks, points, None)
    return sample_at(masks[:, None], points[:, None])[:, 0, 0]


def labels_at(masks: Tensor, rows: Tensor, points: Tensor, groups: int = 1) -> Tensor:
    """Bilinear values of true masks, each at the points of the predictions that it is compared with.

    Args:
        masks: (n, H, W) bool.
        rows: (R,) int64, the mask that each prediction is compared with.
        points: (R, P, 2).
        groups: `rows` is one run of masks, repeated as many times.

    Returns:
        (R, P) in [0, 1].
    """
    if _compiled(points):
        return torch.ops.lowrank_d2.masks_at_points(masks, points, rows)
    # Each mask is sampled once at the points of all groups; a mask per row would copy every mask for every group.
    instances = len(rows) // groups
    by_instance = points.unflatten(0, (groups, instances)).transpose(0, 1)
    return sample_at(masks[rows[:instances], None].float(), by_instance)[:, 0].transpose(0, 1).flatten(0, 1)


def mask_losses_at(masks: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`point_bce` and `point_dice` of each mask at its own points; only `masks` has a gradient, and only a first one.

    Between the passes this keeps points, logits and labels, half of what the operators of the plain form keep.

    Args:
        masks: (R, H, W) logits.
        points: (R, P, 2).
        labels: (R, P) in [0, 1].

    Returns:
        two tensors (R,).
    """
    return _MaskLosses.apply(masks, points, labels)[:2]


class _MaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(masks, points, labels):
        logits = masks_at(masks, points)
        return point_bce(logits, labels), point_dice(logits, labels), logits

    @staticmethod
    def setup_context(ctx, inputs, output):
        masks, points, labels = inputs
        ctx.size, logits = masks.shape[1:], output[2]
        ctx.mark_non_differentiable(logits)
        ctx.save_for_backward(points, labels, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_bce, grad_dice, _):
        points, labels, logits = ctx.saved_tensors
        probability = logits.sigmoid()
        overlap, below = (probability * labels).sum(1), probability.sum(1) + labels.sum(1) + 1
        # Of dice = 1 - (2 overlap + 1) / below by the probabilities: (2 overlap + 1) / below^2 - 2 labels / below.
        constant, slope = grad_dice * (2 * overlap + 1) / below**2, grad_dice * -2 / below
        through = torch.addcmul(constant[:, None], slope[:, None], labels)
        grad = torch.ops.aten.sigmoid_backward(through, probability)
        grad.addcmul_(probability.sub_(labels), (grad_bce / labels.shape[1])[:, None])
        return _spread(grad, points, ctx.size), None, None


def _spread(grad: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient of maps (R, H, W), from that of their values at points (R, P, 2): (R, P) -> (R, H, W)."""
    if _compiled(grad, points):
        return torch.ops.lowrank_d2.masks_at_points_backward(grad, points, *size)
    # The maps would only matter for the gradient of the points.
    maps = grad.new_zeros(()).expand(len(grad), 1, *size)
    grid, bilinear, zeros = points[:, None].mul(2).sub_(1), 0, 0
    mask = [True, False]
    return torch.ops.aten.grid_sampler_2d_backward(grad[:, None, None], maps, grid, bilinear, zeros, False, mask)[0][:, 0]


def sample_rows(table: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """What `sample_at` gives for one map of many channels, with the channels last.

    Each corner is one contiguous row of the table, where `sample_at` would gather channel by channel: with 256 channels
    a CPU is 20 times faster.

    Args:
        table: (H * W, C), a map row by row.
        size: (H, W).
        points: (P, 2).

    Returns:
        (P, C).
    """
    limit = torch.tensor(size[::-1], device=points.device)
    position = points * limit - 0.5
    low = position.floor()
    corners = torch.stack((low, low + 1))  # (2, P, 2): the pixels before and after, in x and y
    shares = torch.stack((1 - (position - low), position - low)) * ((corners >= 0) & (corners < limit))
    x, y = torch.minimum(corners.long().clamp(min=0), limit - 1).unbind(-1)
    weight_x, weight_y = shares.to(table.dtype).unbind(-1)
    index = (y[:, None] * size[1] + x).flatten(0, 1).T  # (P, 4)
    weight = (weight_y[:, None] * weight_x).flatten(0, 1).T
    return F.embedding_bag(index.contiguous(), table, per_sample_weights=weight.contiguous(), mode="sum")


@torch.no_grad()
def least_certain(masks: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """Of each mask's candidate points, those where its logit is nearest to zero.

    Args:
        masks: (R, H, W) logits.
        candidates: (R, P, 2) points.
        keep: how many to keep, at most P.

    Returns:
        (R, keep, 2), in no particular order.
    """
    if _compiled(masks, candidates):
        return torch.ops.lowrank_d2.least_certain_points(masks, candidates, keep)
    distance = masks.new_empty(candidates.shape[:2])
    # On the CPU few masks at a time, of whose points no second copy needs memory that would be new to the process.
    rows = ROWS_AT_ONCE if masks.device.type == "cpu" else max(1, len(masks))
    for mask, points, out in zip(masks.split(rows), candidates.split(rows), distance.split(rows)):
        torch.abs(sample_at(mask[:, None], points[:, None])[:, 0, 0], out=out)
    # As complex numbers the points are gathered whole, five times faster than their coordinates.
    return torch.view_as_real(torch.view_as_complex(candidates).gather(1, _smallest(distance, keep)))


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled library serves them."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and has_kernel("cpu")


def _smallest(values: Tensor, keep: int) -> Tensor:
    """Indices of the smallest `keep` numbers of each row, in no particular order: (R, P) -> (R, keep)."""
    if values.device.type == "cpu":  # five times faster than topk
        chosen = np.empty((len(values), keep), np.int64)

        def choose(rows: slice) -> None:
            chosen[rows] = np.argpartition(values[rows].numpy(), keep - 1, axis=1)[:, :keep]

        in_parallel(choose, [slice(i, i + ROWS_AT_ONCE) for i in range(0, len(values), ROWS_AT_ONCE)])
        return torch.from_numpy(chosen)
    return values.topk(keep, dim=1, largest=False, sorted=False).indices


def point_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each mask, averaged over its points: (R, P) logits and labels in [0, 1] -> (R,)."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def point_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss of each mask over its points, with one added above and below: (R, P) logits and labels -> (R,)."""
    probability = logits.sigmoid()
    overlap = (probability * labels).sum(1)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + labels.sum(1) + 1)


@torch.no_grad()
def pairwise_bce_and_dice(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`point_bce` and `point_dice` of every predicted mask against every true one, without forming the pairs.

    Both are linear in the label but for sums over the points, so that two matrix products do:
    sum bce = sum softplus(x) - x . t,  and the overlap of dice = sigmoid(x) . t.

    Args:
        logits: (Q, P) of the predictions.
        labels: (n, P) of the truth, at the same points.

    Returns:
        two tensors (Q, n).
    """
    # softplus(x) = -logsigmoid(-x), of which only the second is vectorised on CPUs.
    softplus = F.logsigmoid(-logits).sum(1, keepdim=True).neg_()
    bce = (softplus - logits @ labels.T) / logits.shape[1]
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability @ labels.T) + 1) / (probability.sum(1, keepdim=True) + labels.sum(1) + 1)
    return bce, dice
