"""From the last stage's output to Detectron2's Instances."""
from detectron2.structures import Boxes, Instances
from torch import Tensor


def decode(
    logits: Tensor, boxes: Tensor, size: tuple[int, int], wanted: tuple[int, int], max_detections: int
) -> Instances:
    """The best pairs of a query and a class of one image, best first; nothing is suppressed, boxes are not clipped.

    Args:
        logits: (Q, classes).
        boxes: (Q, 4) corners in pixels of the image as the model sees it, which has `size` (height, width).
        wanted: (height, width) of the image to which the results belong.
        max_detections: at most so many, and at most Q, as in the authors' code.

    Returns:
        pred_boxes in pixels of `wanted`, scores in [0, 1], pred_classes.
    """
    queries, classes = logits.shape
    scores, places = logits.float().sigmoid().flatten().topk(min(queries, max_detections))
    scale = boxes.new_tensor([wanted[1] / size[1], wanted[0] / size[0]]).repeat(2)
    boxes = boxes[places.div(classes, rounding_mode="floor")] * scale
    return Instances(wanted, pred_boxes=Boxes(boxes), scores=scores, pred_classes=places % classes)
