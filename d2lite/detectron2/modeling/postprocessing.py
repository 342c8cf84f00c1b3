"""From predictions on the padded, resized input to the size of the original image."""
import torch
from torch.nn import functional as F

from detectron2.structures import Boxes, Instances, ROIMasks


def detector_postprocess(results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5):
    """Scales boxes, masks and keypoints of one image to (output_height, output_width).

    Boxes are clipped, instances whose box becomes empty are dropped. **The boxes of `results` itself are
    scaled too**; its other fields stay. `pred_masks`, (N, 1, M, M) or ROIMasks inside their boxes, become bool
    (n, output_height, output_width), True from `mask_threshold` on.
    """
    if isinstance(output_width, torch.Tensor):  # traced sizes are tensors, and no tuple of ints can hold them
        size = torch.stack([output_height, output_width])
        width, height = output_width.float(), output_height.float()
    else:
        size, width, height = (output_height, output_width), output_width, output_height
    scale_x, scale_y = width / results.image_size[1], height / results.image_size[0]
    results = Instances(size, **results.get_fields())

    name = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    assert name is not None, "postprocessing needs pred_boxes or proposal_boxes"
    boxes: Boxes = results.get(name)
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        masks = results.pred_masks
        if not isinstance(masks, ROIMasks):
            masks = ROIMasks(masks[:, 0])
        results.pred_masks = masks.to_bitmasks(results.pred_boxes, output_height, output_width, mask_threshold).tensor
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results


def sem_seg_postprocess(result, img_size, output_height, output_width):
    """Crops logits (C, H, W) to the unpadded `img_size` (height, width), then resizes them bilinearly."""
    result = result[:, : img_size[0], : img_size[1]].expand(1, -1, -1, -1)
    return F.interpolate(result, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
