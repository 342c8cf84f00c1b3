"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, equation 3): the public function."""
from typing import Sequence

from torch import Tensor

from lowrank_d2.layers.ms_deform_attn.torch_impl import ms_deform_attn_torch


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of L feature maps, for every query and head.

    Args:
        value: (N, S, M, D), the maps flattened row by row and laid end to end; M heads of D channels.
        spatial_shapes: the L sizes (H, W) of the maps; their areas add up to S.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) as fractions of a map: 0 and 1 are the outer edges of its border
            cells. What lies outside reads 0.
        attention_weights: (N, Q, M, L, P); usually a softmax over the last two dimensions.

    Returns:
        (N, Q, M * D) in the dtype of `value`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    n, s, m, _ = value.shape
    q, levels, points = attention_weights.shape[1], len(spatial_shapes), attention_weights.shape[-1]
    if sum(h * w for h, w in spatial_shapes) != s:
        raise ValueError(f"value has {s} cells, but the maps {list(spatial_shapes)} have another number of them.")
    if attention_weights.shape != (n, q, m, levels, points) or sampling_locations.shape != (n, q, m, levels, points, 2):
        raise ValueError(
            f"Locations {tuple(sampling_locations.shape)}, weights {tuple(attention_weights.shape)} do not fit value "
            f"{tuple(value.shape)} with {levels} maps: (N, Q, M, L, P, 2) and (N, Q, M, L, P) are expected."
        )
    return ms_deform_attn_torch(value, spatial_shapes, sampling_locations, attention_weights)
