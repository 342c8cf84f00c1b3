"""From masks inside boxes to masks of the image."""
import torch
from torch.nn import functional as F

from detectron2._lite import refused

BYTES_PER_FLOAT = 4
GPU_MEM_LIMIT = 1024**3  # bytes that pasting on a GPU may take at a time

pad_masks = refused("pad_masks", __name__)
paste_mask_in_image_old = refused("paste_mask_in_image_old", __name__)
scale_boxes = refused("scale_boxes", __name__)


def paste_masks_in_image(
    masks: torch.Tensor, boxes, image_shape: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Stretch square masks over their boxes: each pixel of the image reads the mask at its centre, bilinearly.

    `masks` are (N, M, M) probabilities, `boxes` Boxes or (N, 4) in pixels. The result is bool (N, height, width) from
    `threshold` on; uint8 0..255 if that is negative, and if there are no masks.
    """
    assert masks.shape[-1] == masks.shape[-2], f"Masks are (N, M, M) squares, not {tuple(masks.shape)}."
    height, width = (int(side) for side in image_shape)
    count = len(masks)
    if count == 0:
        return masks.new_empty((0, height, width), dtype=torch.uint8)
    boxes = boxes if isinstance(boxes, torch.Tensor) else boxes.tensor
    assert len(boxes) == count, f"{len(boxes)} boxes for {count} masks."

    # A CPU gains by touching only the pixels around one box, a GPU by many masks at a time.
    on_cpu = masks.device.type == "cpu"
    at_a_time = 1 if on_cpu else max(GPU_MEM_LIMIT // (height * width * BYTES_PER_FLOAT), 1)
    dtype = torch.bool if threshold >= 0 else torch.uint8
    pasted = torch.zeros(count, height, width, dtype=dtype, device=masks.device)
    for index in torch.arange(count, device=masks.device).split(at_a_time):
        values, region = _do_paste_mask(masks[index, None], boxes[index], height, width, skip_empty=on_cpu)
        pasted[(index, *region)] = values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
    return pasted


def _do_paste_mask(masks: torch.Tensor, boxes: torch.Tensor, img_h: int, img_w: int, skip_empty: bool = True):
    """Paste (N, 1, M, M) masks over (N, 4) boxes: (N, h, w) values, and their (rows, columns) slices of the image.

    The slices are () for all of it; with `skip_empty` they hold all boxes and a pixel around them.
    """
    x_start, y_start, x_end, y_end = 0, 0, img_w, img_h
    if skip_empty:
        x_start, y_start = (boxes[:, :2].amin(dim=0).floor() - 1).clamp(min=0).int().tolist()
        x_end = max(min(int(boxes[:, 2].amax().ceil()) + 1, img_w), x_start)
        y_end = max(min(int(boxes[:, 3].amax().ceil()) + 1, img_h), y_start)
    x = torch.arange(x_start, x_end, device=masks.device, dtype=torch.float32) + 0.5
    y = torch.arange(y_start, y_end, device=masks.device, dtype=torch.float32) + 0.5
    x0, y0, x1, y1 = boxes.float().split(1, dim=1)
    x = (x - x0) / (x1 - x0) * 2 - 1
    y = (y - y0) / (y1 - y0) * 2 - 1
    # In a box without width every pixel is infinitely far away; grid_sample wants a number outside of -1..1.
    x, y = (axis.nan_to_num(nan=3.0, posinf=3.0, neginf=-3.0) for axis in (x, y))
    grid = torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    source = masks if masks.is_floating_point() else masks.float()
    values = F.grid_sample(source, grid.to(source.dtype), align_corners=False)[:, 0]
    return values, ((slice(y_start, y_end), slice(x_start, x_end)) if skip_empty else ())
