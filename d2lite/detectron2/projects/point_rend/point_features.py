"""Features, labels and places of points (PointRend, arXiv:1912.08193). Points are x, y in [0, 1] x [0, 1]."""
import torch
from torch.nn import functional as F

from detectron2.structures import BitMasks


def point_sample(input, point_coords, **kwargs):
    """Read feature maps at points, bilinearly; 0 beyond the border.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2) or (N, H_grid, W_grid, 2).
        kwargs: for ``torch.nn.functional.grid_sample``; detectors pass ``align_corners=False``.

    Returns:
        (N, C, P) or (N, C, H_grid, W_grid)
    """
    if point_coords.dim() == 3:
        return F.grid_sample(input, 2 * point_coords[:, :, None] - 1, **kwargs).squeeze(3)
    return F.grid_sample(input, 2 * point_coords - 1, **kwargs)


def generate_regular_grid_point_coords(R, side_size, device):
    """(R, side_size ** 2, 2): the centres of a grid's cells, row by row."""
    centers = (torch.arange(side_size, device=device, dtype=torch.float32) + 0.5) / side_size
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2).expand(R, -1, -1)


def get_uncertain_point_coords_with_randomness(
    coarse_logits, uncertainty_func, num_points, oversample_ratio, importance_sample_ratio
):
    """Points to train on: the most uncertain ones of a larger random sample, and some plain random ones.

    Args:
        coarse_logits: (N, C, H, W).
        uncertainty_func: (N, C, P) logits -> (N, 1, P), larger where less certain.
        num_points: the number P of points.
        oversample_ratio: how many times P are drawn first; at least 1.
        importance_sample_ratio: the share of P that is chosen by uncertainty.

    Returns:
        (N, P, 2), the uncertain points first.
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


def get_uncertain_point_coords_on_grid(uncertainty_map, num_points):
    """The most uncertain pixels of a map.

    Args:
        uncertainty_map: (N, 1, H, W).
        num_points: at most so many.

    Returns:
        int64 (N, P) flat indices; (N, P, 2) the centres of these pixels.
    """
    count, _, height, width = uncertainty_map.shape
    indices = uncertainty_map.view(count, height * width).topk(min(num_points, height * width), dim=1).indices
    x = ((indices % width).float() + 0.5) / width
    y = ((indices // width).float() + 0.5) / height
    return indices, torch.stack([x, y], dim=2)


def get_point_coords_wrt_image(boxes_coords, point_coords):
    """Points of boxes as pixels of the image.

    Args:
        boxes_coords: (R, 4); point_coords: (R, P, 2).

    Returns:
        (R, P, 2)
    """
    with torch.no_grad():
        low, high = boxes_coords[:, None, :2], boxes_coords[:, None, 2:]
        return point_coords * (high - low) + low


def point_sample_fine_grained_features(features_list, feature_scales, boxes, point_coords):
    """Read several feature maps at points of boxes.

    Args:
        features_list: (N, C_i, H_i, W_i) maps.
        feature_scales: from pixels of the image to those of each map.
        boxes (list[Boxes]): of each image; R in all.
        point_coords: (R, P, 2).

    Returns:
        (R, sum of C_i, P); (R, P, 2) the points in pixels of the image.
    """
    points = get_point_coords_wrt_image(torch.cat([image_boxes.tensor for image_boxes in boxes]), point_coords)
    counts = [len(image_boxes) for image_boxes in boxes]
    per_image = []
    for index, image_points in enumerate(points.split(counts)):
        levels = []
        for features, scale in zip(features_list, feature_scales):
            size = torch.tensor(features.shape[:-3:-1], device=features.device)  # width, height
            sampled = point_sample(features[index][None], (image_points * scale / size)[None], align_corners=False)
            levels.append(sampled[0].transpose(0, 1))
        per_image.append(torch.cat(levels, dim=1))
    return torch.cat(per_image), points


def sample_point_labels(instances, point_coords):
    """Ground truth masks read at points.

    Args:
        instances (list[Instances]): with gt_masks (BitMasks); R in all.
        point_coords: (R, P, 2) pixels of the image.

    Returns:
        (R, P) values in [0, 1], without gradient.
    """
    labels = []
    with torch.no_grad():
        for each, points in zip(instances, point_coords.split([len(each) for each in instances])):
            assert isinstance(each.gt_masks, BitMasks), "Point labels need INPUT.MASK_FORMAT 'bitmask'."
            height, width = each.gt_masks.image_size
            size = torch.tensor([width, height], dtype=torch.float32, device=points.device)
            bitmaps = each.gt_masks.tensor[:, None].to(torch.float32)
            labels.append(point_sample(bitmaps, points / size, align_corners=False)[:, 0])
    return torch.cat(labels)
