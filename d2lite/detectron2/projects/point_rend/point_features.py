"""Sampling at points (PointRend, arXiv:1912.08193), which are x, y in [0, 1] x [0, 1]; its heads' helpers refuse."""
import torch
from torch.nn import functional as F

from detectron2._lite import refused

generate_regular_grid_point_coords = refused("generate_regular_grid_point_coords", __name__)
get_point_coords_wrt_image = refused("get_point_coords_wrt_image", __name__)
get_uncertain_point_coords_on_grid = refused("get_uncertain_point_coords_on_grid", __name__)
point_sample_fine_grained_features = refused("point_sample_fine_grained_features", __name__)
sample_point_labels = refused("sample_point_labels", __name__)


def point_sample(input, point_coords, **kwargs):
    """Read feature maps (N, C, H, W) at points, bilinearly; 0 beyond the border.

    Points (N, P, 2) give (N, C, P), points (N, H_grid, W_grid, 2) give (N, C, H_grid, W_grid). `kwargs` are for
    ``torch.nn.functional.grid_sample``; detectors pass ``align_corners=False``.
    """
    if point_coords.dim() == 3:
        return F.grid_sample(input, 2 * point_coords[:, :, None] - 1, **kwargs).squeeze(3)
    return F.grid_sample(input, 2 * point_coords - 1, **kwargs)


def get_uncertain_point_coords_with_randomness(
    coarse_logits, uncertainty_func, num_points, oversample_ratio, importance_sample_ratio
):
    """Points to train on: the most uncertain ones of a larger random sample, and some plain random ones.

    `coarse_logits` are (N, C, H, W); `uncertainty_func` takes (N, C, P) of them and gives (N, 1, P), larger where less
    certain. Of the (N, P, 2) points the share `importance_sample_ratio`, which comes first, is chosen from
    `oversample_ratio` times P.
    """
    assert oversample_ratio >= 1, f"oversample_ratio is at least 1, not {oversample_ratio}."
    assert 0 <= importance_sample_ratio <= 1, f"importance_sample_ratio lies in 0..1, not {importance_sample_ratio}."
    batch, device = coarse_logits.shape[0], coarse_logits.device
    drawn = torch.rand(batch, int(num_points * oversample_ratio), 2, device=device)
    # The uncertainty of a sampled logit, not a sample of the uncertainty map: between two pixels of opposite sign lies
    # the most uncertain point of all.
    uncertainty = uncertainty_func(point_sample(coarse_logits, drawn, align_corners=False))
    uncertain = int(importance_sample_ratio * num_points)
    chosen = uncertainty[:, 0].topk(uncertain, dim=1).indices
    points = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    if uncertain < num_points:
        points = torch.cat([points, torch.rand(batch, num_points - uncertain, 2, device=device)], dim=1)
    return points
