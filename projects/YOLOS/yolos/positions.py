"""Position embeddings of a sequence [class token, patches, detection tokens], resized to other images."""
import torch.nn.functional as F
from torch import Tensor, cat

Grid = tuple[int, int]  # rows and columns of patches


def grid_of(height: int, width: int, patch_size: int) -> Grid:
    """Patches that fit into an image; what is left over at the right and the bottom is not seen."""
    return height // patch_size, width // patch_size


def resize_positions(positions: Tensor, trained: Grid, wanted: Grid, num_det_tokens: int) -> Tensor:
    """Bicubic interpolation of the patches' part.

    The same grid gives the same values. As transformers does it, and unlike the original, a grid of another shape but
    as many patches (a portrait instead of a landscape) is interpolated too: the original would read it row by row into
    the wrong places.

    Args:
        positions: (..., 1 + rows * columns + num_det_tokens, width), for `trained` (rows, columns).

    Returns:
        (..., 1 + rows * columns + num_det_tokens, width) for `wanted`.
    """
    if trained == wanted:
        return positions
    first, patches, det = positions.split([1, trained[0] * trained[1], num_det_tokens], dim=-2)
    maps = patches.transpose(-1, -2).unflatten(-1, trained)
    resized = F.interpolate(maps.flatten(0, -4), size=wanted, mode="bicubic", align_corners=False)
    resized = resized.view(*maps.shape[:-2], wanted[0] * wanted[1]).transpose(-1, -2)
    return cat((first, resized, det), dim=-2)
